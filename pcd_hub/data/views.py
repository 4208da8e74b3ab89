"""Two augmented views of an image, each a pure function of (seed, epoch, index, view).

The random numbers are drawn first, into a :class:`ViewParameters`; rendering then needs no
randomness. So neither the number of workers nor the order of work changes a pixel. As they are
drawn before the image is decoded, a large JPEG is decoded no larger than its views need.

Pillow crops and resizes; OpenCV does the colours and the blur, several times faster than Pillow,
which stays as the slow twin (``renderer="pillow"``) and needs nothing to be installed.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from pcd_hub.errors import DataError

Renderer = Literal["opencv", "pillow"]
Pixels = UInt8[np.ndarray, "height width 3"]

_GRAY = np.asarray([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow and OpenCV weigh


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
    renderer: Renderer = "opencv"

    def __post_init__(self) -> None:
        _check_renderer(self.renderer)

    def __call__(
        self, image: Image.Image, *, epoch: int, index: int
    ) -> UInt8[Tensor, "2 3 size size"]:
        """The two views of ``image``, which is number ``index`` of its source, in ``epoch``."""
        return self.render(image, self.draw(image.size, epoch=epoch, index=index))

    def draw(self, size: tuple[int, int], *, epoch: int, index: int) -> "DrawnViews":
        """Everything random about the views of an image of ``size`` (width, height)."""
        width, height = size
        views = []
        for number, policy in enumerate((self.first, self.second)):
            rng = np.random.default_rng((self.seed, epoch, index, number))
            views.append(draw_view(policy, rng, width=width, height=height))
        sides = [side for view in views for side in view.crop_size]
        return DrawnViews(views=views, size=size, largest_shrink=min(sides) / self.image_size)

    def render(self, image: Image.Image, drawn: "DrawnViews") -> UInt8[Tensor, "2 3 size size"]:
        """The drawn views of an RGB image, which may be smaller than ``drawn.size``."""
        scale = image.width / drawn.size[0], image.height / drawn.size[1]
        how = render_view if self.renderer == "opencv" else render_view_with_pillow
        views = [how(image, view.scaled(*scale), size=self.image_size) for view in drawn.views]
        return stacked([view[None] for view in views])


def stacked(views: list[Tensor]) -> Tensor:
    """``torch.cat`` of maps ``(..., C, H, W)``, all laid out channels last."""
    return torch.cat([view.movedim(-3, -1) for view in views]).movedim(-1, -3)


def byol_views(
    image_size: int,
    *,
    seed: int,
    crop_area: tuple[float, float] = (0.08, 1.0),
    hue: float = 0.1,
    gray_probability: float = 0.2,
    renderer: Renderer = "opencv",
) -> TwoViews:
    """BYOL's asymmetric pair: first always blurred, second rarely, but sometimes solarized."""
    first = ViewPolicy(crop_area=crop_area, hue=hue, gray_probability=gray_probability)
    second = dataclasses.replace(first, blur_probability=0.1, solarize_probability=0.2)
    return TwoViews(image_size=image_size, first=first, second=second, seed=seed, renderer=renderer)


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

    @property
    def crop_size(self) -> tuple[float, float]:
        """Width and height of the crop."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def scaled(self, x: float, y: float) -> "ViewParameters":
        """The same view of an image that is ``x`` times as wide and ``y`` times as high."""
        if x == y == 1:
            return self
        left, top, right, bottom = self.box
        return dataclasses.replace(self, box=(left * x, top * y, right * x, bottom * y))


@dataclass(frozen=True, kw_only=True)
class DrawnViews:
    """The views of one image, before it is decoded."""

    views: list[ViewParameters]
    size: tuple[int, int]
    """Width and height of the image that the boxes are measured in."""
    largest_shrink: float
    """How many times smaller the image may be and no crop has fewer pixels than its view."""


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


def _cropped(image: Image.Image, parameters: ViewParameters, size: int) -> Image.Image:
    view = image.resize(
        (size, size), Image.Resampling.BICUBIC, box=parameters.box, reducing_gap=2.0
    )
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if parameters.flip else view


def render_view(
    image: Image.Image, parameters: ViewParameters, *, size: int
) -> UInt8[Tensor, "3 size size"]:
    """Apply drawn ``parameters`` to an RGB image.

    Every step rounds to 8 bits, as Pillow's do.
    """
    view: Pixels = np.array(_cropped(image, parameters, size))
    for name, factor in parameters.jitter:
        view = _COLOURS[name](view, factor)
    if parameters.gray:
        view = _saturate(view, 0.0)
    if parameters.blur_sigma:
        sigma = parameters.blur_sigma * size / 224
        view = _cv2().GaussianBlur(view, (0, 0), sigma, borderType=_cv2().BORDER_REPLICATE)
    if parameters.solarize:
        view = np.where(view < 128, view, 255 - view)
    return _as_tensor(view)


def _as_tensor(view: Pixels) -> UInt8[Tensor, "3 size size"]:
    """Laid out as it is, channels last, which is also what convolutions like best."""
    return torch.from_numpy(view).permute(2, 0, 1)


def _mix(view: Pixels, weights: Float[np.ndarray, "3 3"], offset: float) -> Pixels:
    """``weights (3, 3) @ pixel + offset``, rounded and cut to 8 bits."""
    matrix = np.column_stack((weights, np.full(3, offset)))
    return _cv2().transform(view, matrix)


def _brighten(view: Pixels, factor: float) -> Pixels:
    return _mix(view, factor * np.eye(3), 0.0)


def _contrast(view: Pixels, factor: float) -> Pixels:
    mean = round(float(np.dot(_cv2().mean(view)[:3], _GRAY)))
    return _mix(view, factor * np.eye(3), (1 - factor) * mean)


def _saturate(view: Pixels, factor: float) -> Pixels:
    return _mix(view, factor * np.eye(3) + (1 - factor) * _GRAY, 0.0)


def _turn_hue(view: Pixels, factor: float) -> Pixels:
    """By ``factor`` of the colour circle, which 8 bits divide into 256."""
    hsv = _cv2().cvtColor(view, _cv2().COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(256 * factor) % 256)
    return _cv2().cvtColor(hsv, _cv2().COLOR_HSV2RGB_FULL)


_COLOURS: dict[str, Callable[[Pixels, float], Pixels]] = {
    "brightness": _brighten,
    "contrast": _contrast,
    "saturation": _saturate,
    "hue": _turn_hue,
}


@functools.cache
def _cv2() -> Any:
    """OpenCV, with one thread: the loader's processes are the parallel part."""
    import cv2

    cv2.setNumThreads(0)
    return cv2


def _check_renderer(renderer: Renderer) -> None:
    if renderer == "opencv" and importlib.util.find_spec("cv2") is None:
        raise DataError(
            "views are rendered with OpenCV, which is not installed; pip install "
            "'pcd_hub[train]', or take the slower --data.renderer pillow"
        )


def render_view_with_pillow(
    image: Image.Image, parameters: ViewParameters, *, size: int
) -> UInt8[Tensor, "3 size size"]:
    """The slow twin of :func:`render_view`; its blur is three box filters, its hue truncated."""
    view = _cropped(image, parameters, size)
    for name, factor in parameters.jitter:
        view = _adjust(view, name, factor)
    if parameters.gray:
        view = view.convert("L").convert("RGB")
    if parameters.blur_sigma:
        view = view.filter(ImageFilter.GaussianBlur(parameters.blur_sigma * size / 224))
    if parameters.solarize:
        view = ImageOps.solarize(view)
    return _as_tensor(np.array(view))


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
