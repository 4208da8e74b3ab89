"""Colour jitter of RGB images with OpenCV; every step rounds to 8 bits, as in Pillow."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

Pixels = UInt8[np.ndarray, "height width 3"]

_GRAY = np.asarray([0.299, 0.587, 0.114])  # ITU-R 601, as in Pillow and OpenCV


def adjust_colours(
    view: Pixels, *, jitter: tuple[tuple[str, float], ...], gray: bool = False
) -> Pixels:
    """Apply operations by name and factor in their order, then convert to gray if asked."""
    for name, factor in jitter:
        view = _COLOUR_JITTER[name](view, factor)
    return _adjust_saturation(view, 0.0) if gray else view


def _mix_channels(view: Pixels, weights: Float[np.ndarray, "3 3"], offset: float) -> Pixels:
    """Compute ``weights (3, 3) @ pixel + offset``, rounded and clipped to 8 bits."""
    matrix = np.column_stack((weights, np.full(3, offset)))
    return cv2().transform(view, matrix)


def _adjust_brightness(view: Pixels, factor: float) -> Pixels:
    return _mix_channels(view, factor * np.eye(3), 0.0)


def _adjust_contrast(view: Pixels, factor: float) -> Pixels:
    mean = round(float(np.dot(cv2().mean(view)[:3], _GRAY)))
    return _mix_channels(view, factor * np.eye(3), (1 - factor) * mean)


def _adjust_saturation(view: Pixels, factor: float) -> Pixels:
    return _mix_channels(view, factor * np.eye(3) + (1 - factor) * _GRAY, 0.0)


def _adjust_hue(view: Pixels, factor: float) -> Pixels:
    """Rotate the hue by ``factor`` of the colour circle, in steps of 1/256."""
    hsv = cv2().cvtColor(view, cv2().COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(256 * factor) % 256)
    return cv2().cvtColor(hsv, cv2().COLOR_HSV2RGB_FULL)


_COLOUR_JITTER: dict[str, Callable[[Pixels, float], Pixels]] = {
    "brightness": _adjust_brightness,
    "contrast": _adjust_contrast,
    "saturation": _adjust_saturation,
    "hue": _adjust_hue,
}


@functools.cache
def cv2() -> Any:
    """Import OpenCV, and set it to one thread, as loader processes already run in parallel."""
    import cv2 as opencv

    opencv.setNumThreads(0)
    return opencv
