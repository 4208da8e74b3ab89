"""Two augmented views of an image, each a pure function of (seed, epoch, index, view).

The random parameters of a view are drawn first (:class:`ViewParameters`), and rendering is
deterministic, so views do not depend on the number of workers. Because the parameters are drawn
before the image is decoded, a large JPEG is decoded no larger than its views need.

Pillow crops and resizes. OpenCV, several times faster than Pillow, does colours and blur.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from pcd_hub.data.colour_jitter import adjust_colours, cv2
from pcd_hub.data.multiband.image import BandImage
from pcd_hub.data.multiband.jitter import adjust_bands
from pcd_hub.data.view_policy import ViewPolicy, view_policies
from pcd_hub.errors import DataError, pip_install
from pcd_hub.image_size import ImageSize, format_size, height_width

Pixels = UInt8[np.ndarray, "height width bands"]

_RGB = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class EarlyViews:
    """Smaller views for the first steps of a run."""

    image_size: ImageSize
    steps: int
    """Number of these steps."""

    def __str__(self) -> str:
        return f"{format_size(self.image_size)} px in the first {self.steps:,} steps"


@dataclass(frozen=True, kw_only=True)
class TwoViewTransform:
    """Transform of an image to two augmented views of ``image_size`` pixels."""

    image_size: ImageSize
    first: ViewPolicy
    second: ViewPolicy
    seed: int
    num_bands: int = 3
    colours: tuple[int, ...] = _RGB
    """Places of red, green and blue among the bands; empty if there are no colours."""
    early: EarlyViews | None = None
    """Smaller views of the first steps, which :meth:`at` returns; None for one size."""
    view_epochs: int = 0
    """Epochs after which the views of each image repeat; 0 for never."""

    def __post_init__(self) -> None:
        _check_opencv()

    def at(self, step: int) -> "TwoViewTransform":
        """Return the transform of optimizer step ``step``, counted from 0."""
        if self.early is None:
            return self
        is_early = step < self.early.steps
        size = self.early.image_size if is_early else self.image_size
        return dataclasses.replace(self, image_size=size, early=None)

    def __call__(
        self, image: Image.Image | BandImage, *, epoch: int, index: int
    ) -> UInt8[Tensor, "2 bands height width"]:
        """Return the two views of ``image``, number ``index`` of its source, in ``epoch``."""
        return self.render(image, self.draw(image.size, epoch=epoch, index=index))

    def draw(self, size: tuple[int, int], *, epoch: int, index: int) -> "PairParameters":
        """Draw the parameters of both views of an image of ``size`` (width, height)."""
        width, height = size
        view_height, view_width = height_width(self.image_size)
        if self.view_epochs:
            epoch %= self.view_epochs
        views = []
        for number, policy in enumerate((self.first, self.second)):
            rng = np.random.default_rng((self.seed, epoch, index, number))
            aspect = view_width / view_height
            views.append(draw_view(policy, rng, width=width, height=height, aspect=aspect))
        crops = [view.crop_size for view in views]
        shrink = min(min(wide / view_width, high / view_height) for wide, high in crops)
        return PairParameters(views=views, size=size, max_shrink=shrink)

    def render(
        self, image: Image.Image | BandImage, parameters: "PairParameters"
    ) -> UInt8[Tensor, "2 bands height width"]:
        """Render both views of an image, which may be smaller than ``parameters.size``."""
        scale = image.width / parameters.size[0], image.height / parameters.size[1]
        views = [
            render_view(image, view.scaled(*scale), size=self.image_size, colours=self.colours)
            for view in parameters.views
        ]
        return concatenate_views([view[None] for view in views])


def concatenate_views(views: list[Tensor]) -> Tensor:
    """Concatenate images ``(..., C, H, W)`` and keep the channels-last memory format."""
    return torch.cat([view.movedim(-3, -1) for view in views]).movedim(-1, -3)


def byol_views(
    image_size: ImageSize,
    *,
    seed: int,
    crop_area: tuple[float, float] = (0.08, 1.0),
) -> TwoViewTransform:
    """Build BYOL's asymmetric pair: only the first always blurred, only the second solarized."""
    first, second = view_policies("default", crop_area=crop_area)
    return TwoViewTransform(image_size=image_size, first=first, second=second, seed=seed)


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """The random parameters of one view."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the crop in pixels of the source image."""
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    """(operation, factor) in the order of application; may be empty."""
    gray: bool
    blur_sigma: float
    """Standard deviation in pixels at image size 224; 0 for no blur."""
    solarize: bool
    vertical_flip: bool = False

    @property
    def crop_size(self) -> tuple[float, float]:
        """Width and height of the crop in pixels."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def scaled(self, x: float, y: float) -> "ViewParameters":
        """Return the same view for the image scaled by ``x`` in width and ``y`` in height."""
        if x == y == 1:
            return self
        left, top, right, bottom = self.box
        return dataclasses.replace(self, box=(left * x, top * y, right * x, bottom * y))


@dataclass(frozen=True, kw_only=True)
class PairParameters:
    """The random parameters of both views of one image."""

    views: list[ViewParameters]
    size: tuple[int, int]
    """Width and height of the image to which the boxes refer."""
    max_shrink: float
    """Largest factor by which the image may shrink without a crop smaller than its view."""


def crops_of(pairs: Sequence[PairParameters]) -> Float[Tensor, "b 2 4"]:
    """Return left, top, right, bottom of each crop, as shares of its image's width and height."""
    boxes = np.array([[view.box for view in pair.views] for pair in pairs], np.float64)
    sizes = np.array([pair.size * 2 for pair in pairs], np.float64)
    return torch.from_numpy((boxes / sizes[:, None]).astype(np.float32))


def flips_of(pairs: Sequence[PairParameters]) -> Bool[Tensor, "b 2 2"]:
    """Return whether each view is mirrored horizontally and vertically."""
    return torch.tensor(
        [[(view.flip, view.vertical_flip) for view in pair.views] for pair in pairs]
    )


def draw_view(
    policy: ViewPolicy, rng: np.random.Generator, *, width: int, height: int, aspect: float = 1.0
) -> ViewParameters:
    """Draw the parameters of one view of an image of ``width`` x ``height`` pixels.

    Args:
        policy: The distribution.
        rng: The source of randomness.
        width: Width of the image.
        height: Height of the image.
        aspect: Width / height of the view, to which the aspect of the crop is relative.
    """
    return ViewParameters(
        box=_draw_box(policy.crop_area, rng, width, height, aspect),
        flip=bool(rng.random() < policy.flip_probability),
        jitter=_draw_jitter(policy, rng),
        gray=bool(rng.random() < policy.gray_probability),
        blur_sigma=float(rng.uniform(*policy.blur_sigma))
        if rng.random() < policy.blur_probability
        else 0.0,
        solarize=bool(rng.random() < policy.solarize_probability),
        vertical_flip=_happens(policy.vertical_flip_probability, rng),
    )


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Draw an event without using up a random number if it is impossible."""
    return probability > 0 and bool(rng.random() < probability)


def _draw_box(
    area: tuple[float, float], rng: np.random.Generator, width: int, height: int, aspect: float
) -> tuple[float, float, float, float]:
    """Draw torchvision's RandomResizedCrop, with the aspect relative to that of the view.

    It is 3/4..4/3 times ``aspect``, so that a view distorts objects no more than a square one; a
    centre crop after ten misses.
    """
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        ratio = aspect * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return float(left), float(top), float(left + w), float(top + h)
    w, h = min(float(width), height * 4 / 3 * aspect), min(float(height), width * 4 / 3 / aspect)
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


def _crop(image: Any, parameters: ViewParameters, size: ImageSize) -> Any:
    height, width = height_width(size)
    view = image.resize(
        (width, height), Image.Resampling.BICUBIC, box=parameters.box, reducing_gap=2.0
    )
    if parameters.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if parameters.vertical_flip else view


def blur_sigma(parameters: ViewParameters, size: ImageSize) -> float:
    """Return the standard deviation in pixels of a view of ``size``."""
    return parameters.blur_sigma * math.sqrt(math.prod(height_width(size))) / 224


def render_view(
    image: Image.Image | BandImage,
    parameters: ViewParameters,
    *,
    size: ImageSize,
    colours: tuple[int, ...] = _RGB,
) -> UInt8[Tensor, "bands height width"]:
    """Render one view with OpenCV; every step rounds to 8 bits, as in Pillow.

    Args:
        image: An RGB image, or one of several bands.
        parameters: The random parameters.
        size: Size of the view.
        colours: Places of red, green and blue among the bands; empty if there are none.
    """
    view: Pixels = np.array(_crop(image, parameters, size))
    adjust = functools.partial(adjust_colours, jitter=parameters.jitter, gray=parameters.gray)
    if colours == _RGB and view.shape[2] == 3:
        view = adjust(view)
    else:
        view = adjust_bands(view, parameters.jitter, colours=colours, adjust_colours=adjust)
    if parameters.blur_sigma:
        sigma, shape = blur_sigma(parameters, size), view.shape
        view = cv2().GaussianBlur(view, (0, 0), sigma, borderType=cv2().BORDER_REPLICATE)
        view = view.reshape(shape)  # OpenCV drops the axis of a single band
    if parameters.solarize:
        view = np.where(view < 128, view, 255 - view)
    return _to_tensor(view)


def _to_tensor(view: Pixels) -> UInt8[Tensor, "bands height width"]:
    """Convert without a copy; channels last is also the fastest format for convolutions."""
    return torch.from_numpy(view).permute(2, 0, 1)


def _check_opencv() -> None:
    if importlib.util.find_spec("cv2") is None:
        raise DataError(
            f"OpenCV, which renders the views, is not installed; {pip_install('train')}"
        )


def render_view_with_pillow(
    image: Image.Image, parameters: ViewParameters, *, size: ImageSize
) -> UInt8[Tensor, "3 height width"]:
    """Reference implementation of :func:`render_view`; Pillow's blur is three box filters."""
    view = _crop(image, parameters, size)
    for name, factor in parameters.jitter:
        view = _jitter_with_pillow(view, name, factor)
    if parameters.gray:
        view = view.convert("L").convert("RGB")
    if parameters.blur_sigma:
        view = view.filter(ImageFilter.GaussianBlur(blur_sigma(parameters, size)))
    if parameters.solarize:
        view = ImageOps.solarize(view)
    return _to_tensor(np.array(view))


def _jitter_with_pillow(view: Image.Image, name: str, factor: float) -> Image.Image:
    match name:
        case "brightness":
            return ImageEnhance.Brightness(view).enhance(factor)
        case "contrast":
            return ImageEnhance.Contrast(view).enhance(factor)
        case "saturation":
            return ImageEnhance.Color(view).enhance(factor)
        case _:
            return cast("Any", tvf.adjust_hue)(view, factor)  # annotated for tensors only
