"""Colour jitter of images with other bands than red, green and blue."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

Pixels = UInt8[np.ndarray, "height width bands"]


def adjust_bands(
    view: Pixels,
    jitter: tuple[tuple[str, float], ...],
    *,
    colours: tuple[int, ...],
    adjust_colours: Callable[[Pixels], Pixels],
) -> Pixels:
    """Adjust a view: its colours as an RGB image, brightness and contrast of the other bands.

    Saturation, hue and gray exist for colours only.

    Args:
        view: The view.
        jitter: Operations and factors, in their order.
        colours: Places of red, green and blue; empty if there are no colours.
        adjust_colours: All adjustments of an RGB image.
    """
    if colours:
        view[..., colours] = adjust_colours(np.ascontiguousarray(view[..., colours]))
    for band in range(view.shape[2]):
        if band not in colours:
            for name, factor in jitter:
                view[..., band] = _adjust_band(view[..., band], name, factor)
    return view


def _adjust_band(
    band: UInt8[np.ndarray, "height width"], name: str, factor: float
) -> UInt8[np.ndarray, "height width"]:
    """Multiply the values, or their differences from the mean of the band."""
    match name:
        case "brightness":
            centre = 0.0
        case "contrast":
            centre = float(round(band.mean()))
        case _:
            return band
    table = factor * np.arange(256) + (1 - factor) * centre
    return np.rint(table).clip(0, 255).astype(np.uint8)[band]
