"""Two augmented views of an image, each a pure function of (seed, epoch, index, view).

The random numbers are drawn first, into a :class:`ViewParameters`; :func:`render_view` then needs
no randomness. So neither the number of workers nor the order of work changes a pixel.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """The distribution one view is drawn from.

    The defaults are those of BYOL, MoCo v3 and the released PCD code.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area."""
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """Share of the colour circle."""
    gray_probability: float = 0.2
    blur_probability: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """In pixels at 224; scaled with the image size."""
    solarize_probability: float = 0.0
    flip_probability: float = 0.5


@dataclass(frozen=True, kw_only=True)
class TwoViews:
    """What to make of one image: two views of ``image_size`` pixels."""

    image_size: int
    first: ViewPolicy
    second: ViewPolicy
    seed: int

    def __call__(
        self, image: Image.Image, *, epoch: int, index: int
    ) -> UInt8[Tensor, "2 3 size size"]:
        """The two views of ``image``, which is number ``index`` of its source, in ``epoch``."""
        views = []
        for number, policy in enumerate((self.first, self.second)):
            rng = np.random.default_rng((self.seed, epoch, index, number))
            parameters = draw_view(policy, rng, width=image.width, height=image.height)
            views.append(render_view(image, parameters, size=self.image_size))
        return torch.stack(views)


def byol_views(
    image_size: int,
    *,
    seed: int,
    crop_area: tuple[float, float] = (0.08, 1.0),
    hue: float = 0.1,
    gray_probability: float = 0.2,
) -> TwoViews:
    """BYOL's asymmetric pair: first always blurred, second rarely, but sometimes solarized."""
    first = ViewPolicy(crop_area=crop_area, hue=hue, gray_probability=gray_probability)
    second = dataclasses.replace(first, blur_probability=0.1, solarize_probability=0.2)
    return TwoViews(image_size=image_size, first=first, second=second, seed=seed)


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """Everything random about one view, drawn."""

    box: tuple[float, float, float, float]
    """left, top, right, bottom of the crop in pixels of the source image."""
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    """(operation, factor) in the order of application; empty for none."""
    gray: bool
    blur_sigma: float
    """In pixels at 224; 0 for none."""
    solarize: bool


def draw_view(
    policy: ViewPolicy, rng: np.random.Generator, *, width: int, height: int
) -> ViewParameters:
    """Draw the parameters of one view of a ``width`` x ``height`` image."""
    return ViewParameters(
        box=_draw_box(policy.crop_area, rng, width, height),
        flip=bool(rng.random() < policy.flip_probability),
        jitter=_draw_jitter(policy, rng),
        gray=bool(rng.random() < policy.gray_probability),
        blur_sigma=float(rng.uniform(*policy.blur_sigma))
        if rng.random() < policy.blur_probability
        else 0.0,
        solarize=bool(rng.random() < policy.solarize_probability),
    )


def _draw_box(
    area: tuple[float, float], rng: np.random.Generator, width: int, height: int
) -> tuple[float, float, float, float]:
    """RandomResizedCrop's box: aspect log-uniform in 3/4..4/3; after ten misses a centre crop."""
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return float(left), float(top), float(left + w), float(top + h)
    w, h = min(float(width), height * 4 / 3), min(float(height), width * 4 / 3)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _draw_jitter(policy: ViewPolicy, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    if rng.random() >= policy.jitter_probability:
        return ()
    factors = [
        (name, float(rng.uniform(1 - strength, 1 + strength)))
        for name, strength in (
            ("brightness", policy.brightness),
            ("contrast", policy.contrast),
            ("saturation", policy.saturation),
        )
    ]
    factors.append(("hue", float(rng.uniform(-policy.hue, policy.hue))))
    return tuple(factors[place] for place in rng.permutation(4))


def render_view(
    image: Image.Image, parameters: ViewParameters, *, size: int
) -> UInt8[Tensor, "3 size size"]:
    """Apply drawn ``parameters`` to an RGB image."""
    view = image.resize(
        (size, size), Image.Resampling.BICUBIC, box=parameters.box, reducing_gap=2.0
    )
    if parameters.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, factor in parameters.jitter:
        view = _adjust(view, name, factor)
    if parameters.gray:
        view = view.convert("L").convert("RGB")
    if parameters.blur_sigma:
        view = view.filter(ImageFilter.GaussianBlur(parameters.blur_sigma * size / 224))
    if parameters.solarize:
        view = ImageOps.solarize(view)
    return torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()


def _adjust(view: Image.Image, name: str, factor: float) -> Image.Image:
    match name:
        case "brightness":
            return ImageEnhance.Brightness(view).enhance(factor)
        case "contrast":
            return ImageEnhance.Contrast(view).enhance(factor)
        case "saturation":
            return ImageEnhance.Color(view).enhance(factor)
        case _:
            return cast("Any", tvf.adjust_hue)(view, factor)  # its annotation knows tensors only
