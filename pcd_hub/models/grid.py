"""Feature maps of timm CNNs and ViTs, and their resampling."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.errors import StudentError, first_line
from pcd_hub.image_size import ImageSize, format_size, height_width, simplest


class PixelGrid(nn.Module):
    """A timm model as ``images (B, bands, H, W) -> last feature map (B, num_channels, h, w)``.

    Use :func:`pixel_grid` to build one: it detects the layout of the model's features.
    """

    def __init__(
        self,
        model: nn.Module,
        to_map: Callable[[Any, Tensor], Tensor],
        num_channels: int,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.model = model
        self.in_chans = in_chans
        self.num_channels = num_channels
        """Channels of the map; ``num_features`` differs in MobileNetV3, GhostNet and others."""
        self._to_map = to_map

    def example(self, image_size: ImageSize) -> Float[Tensor, "2 bands height width"]:
        """Return two black images."""
        return torch.zeros(2, self.in_chans, *height_width(image_size))

    def forward(
        self, images: Float[Tensor, "b bands height width"], num_maps: int = 1
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the last feature map, or the last ``num_maps`` ones, the last one first."""
        if num_maps == 1:
            return self._to_map(self.model.forward_features(images), images)  # pyright: ignore[reportCallIssue]
        features, maps = self.model.forward_intermediates(images, indices=num_maps)  # pyright: ignore[reportCallIssue]
        return self._to_map(features, images), *maps[-2::-1]


class FinestMap(nn.Module):
    """A student as ``images -> the finest of its last num_maps feature maps``.

    Args:
        student: The student.
        num_maps: At least 1, its last feature map.
        image_size: Size of the student's images.

    Raises:
        StudentError: If the student does not have as many, each finer than the next.
    """

    def __init__(self, student: PixelGrid, num_maps: int, *, image_size: ImageSize) -> None:
        super().__init__()
        self.student = student
        self.num_maps = num_maps
        self.in_chans = student.in_chans
        self.num_channels = (student.num_channels,)
        """Channels of each map, the last one first."""
        if num_maps > 1:
            self.num_channels = tuple(each.shape[1] for each in self._find_maps(image_size))

    def forward(self, images: Float[Tensor, "b bands height width"]) -> Float[Tensor, "b c h w"]:
        maps = self.student(images, self.num_maps)
        return maps if self.num_maps == 1 else maps[-1]

    def _find_maps(self, image_size: ImageSize) -> tuple[Tensor, ...]:
        name = architecture(self.student.model)
        remedy = "use --method.feature-maps 1"
        images = self.student.example(image_size).to(next(self.student.parameters()).device)
        was_training = self.student.training
        try:
            with torch.no_grad():
                maps = self.student.eval()(images, self.num_maps)
        except Exception as error:
            raise StudentError(
                f"timm does not return the last {self.num_maps} feature maps of {name} "
                f"({first_line(error)}); {remedy}"
            ) from error
        finally:
            self.student.train(was_training)
        sizes = [tuple(each.shape[2:]) for each in maps]
        if any(math.prod(finer) <= math.prod(last) for last, finer in itertools.pairwise(sizes)):
            found = ", ".join(f"{height} x {width}" for height, width in sizes)
            raise StudentError(
                f"the last {self.num_maps} feature maps of {name} have {found} locations: expected "
                f"each to be finer than the one before it; {remedy}"
            )
        return maps


def pixel_grid(
    model: nn.Module, *, image_size: ImageSize | None = None, in_chans: int = 3
) -> PixelGrid:
    """Wrap a timm model so that it returns its last feature map as ``(B, C, h, w)``.

    Prefix tokens of ViTs are dropped, and channels-last maps are permuted. The layout is detected
    by one forward pass of black images in eval mode; the model's mode is restored.

    Args:
        model: Any timm model with ``forward_features``.
        image_size: Size of the black images in pixels; default: the model's input size.
        in_chans: Channels of the images.

    Raises:
        StudentError: If the model has no feature map, or does not accept ``image_size``.
    """
    name = architecture(model)
    if not hasattr(model, "forward_features"):
        raise StudentError(f"{name} is not a timm model: it has no forward_features")
    height, width = height_width(image_size or default_image_size(model))
    parameter = next(model.parameters())
    probe = torch.zeros(2, in_chans, height, width, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    try:
        with torch.no_grad():
            features = model.eval().forward_features(probe)  # pyright: ignore[reportCallIssue]
    except Exception as error:
        if channels := re.search(r"to have (\d+) channels", str(error)):
            raise StudentError(
                f"{name} takes images of {channels[1]} channels, expected {in_chans}"
            ) from error
        raise StudentError(
            f"{name} cannot take {height} x {width} pixels ({first_line(error)}); its input size "
            f"is {format_size(default_image_size(model))}, most CNNs take any multiple of 32"
        ) from error
    finally:
        model.train(was_training)
    to_map = _layout(model, features, probe, name)
    num_channels = to_map(features, probe).shape[1]
    return PixelGrid(model, to_map, num_channels=num_channels, in_chans=in_chans)


def architecture(model: nn.Module) -> str:
    """Return the timm architecture name of ``model``, or its class name."""
    return _pretrained_cfg(model).get("architecture") or type(model).__name__


def default_image_size(model: nn.Module) -> ImageSize:
    """Return the input size in the model's pretrained_cfg; 224 if it has none."""
    return simplest((_pretrained_cfg(model).get("input_size") or (3, 224, 224))[1:])


def _pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    return getattr(model, "pretrained_cfg", None) or {}


def _layout(
    model: nn.Module, features: object, images: Tensor, name: str
) -> Callable[[Any, Tensor], Tensor]:
    """Return a function that converts such features of this model to ``(B, C, h, w)``."""
    if isinstance(features, list | tuple) and features:  # CoaT, CrossViT: the coarsest is last
        of_last = _layout(model, features[-1], images, name)
        return lambda branches, images: of_last(branches[-1], images)
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    match shape:
        case (_, _, _, _) if getattr(model, "output_fmt", "NCHW") == "NHWC":
            return _from_nhwc
        case (_, _, height, width) if _has_aspect(height, width, images):
            return _from_nchw
        case (_, height, width, _) if _has_aspect(height, width, images):
            return _from_nhwc
        case (_, channels, pixels) if _is_channels_first(model, channels, pixels, images):
            return _from_ncl
        case (_, tokens, _):
            prefix = _num_prefix_tokens(model, tokens, images)
            if fills_grid(tokens - prefix, images):
                return _FromTokens(prefix)
    raise StudentError(
        f"{name} has no spatial feature map: forward_features returns {shape}; "
        "use a CNN or a plain ViT"
    )


def _has_aspect(height: int, width: int, images: Tensor) -> bool:
    """Check whether a map is a smaller copy of the images; each side may be rounded up or down."""
    _, _, image_height, image_width = images.shape
    difference = height * image_width - width * image_height
    return abs(difference) < max(image_height, image_width)


def _num_prefix_tokens(model: nn.Module, tokens: int, images: Tensor) -> int:
    """Return the number of prefix tokens; VOLO and CoaT do not count their class token."""
    stated = int(getattr(model, "num_prefix_tokens", 0))
    has_class_token = any(name.startswith("cls_token") for name, _ in model.named_parameters())
    return 1 if has_class_token and not fills_grid(tokens - stated, images) else stated


def _is_channels_first(model: nn.Module, channels: int, pixels: int, images: Tensor) -> bool:
    """Detect a flattened map ``(B, C, h * w)``, as in EfficientViM."""
    stages: Any = getattr(model, "feature_info", None) or [{}]
    return channels == stages[-1].get("num_chs") != pixels and fills_grid(pixels, images)


def fills_grid(count: int, images: Tensor) -> bool:
    """Check whether ``count`` locations fill a grid with the aspect ratio of the images."""
    if count <= 0:
        return False
    rows = _num_rows(count, images)
    return rows * round((count * images.shape[3] / images.shape[2]) ** 0.5) == count


def _num_rows(count: int, images: Tensor) -> int:
    return round((count * images.shape[2] / images.shape[3]) ** 0.5)


def _from_nchw(features: Tensor, images: Tensor) -> Tensor:
    del images
    return features


def _from_nhwc(features: Tensor, images: Tensor) -> Tensor:
    del images
    return features.permute(0, 3, 1, 2)


def _from_ncl(features: Tensor, images: Tensor) -> Tensor:
    """Reshape ``(B, C, h * w)`` to a map with the aspect ratio of the images."""
    return features.unflatten(2, (_num_rows(features.shape[2], images), -1))


class _FromTokens:
    """Reshape tokens ``(B, prefix + h * w, C)`` to a map."""

    def __init__(self, num_prefix_tokens: int) -> None:
        self.num_prefix_tokens = num_prefix_tokens

    def __call__(self, features: Tensor, images: Tensor) -> Tensor:
        return _from_ncl(features[:, self.num_prefix_tokens :].transpose(1, 2), images)
