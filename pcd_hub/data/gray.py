"""Scale gray images with more than 8 bits per pixel to 8 bits, robust to single outlying pixels.

Unsigned integers of 9 to 16 bits are scaled by the bit depth of the file. For floats, signed and
32-bit integers, whose white is not defined, the range follows from the values:

1. NaN, infinity, magnitudes of 1e10 or more, the TIFF's GDAL_NODATA value, and a single negative
   value (-9999, -32768, -1: all negative pixels are equal) mean "no data"; such pixels are black.
2. One pixel in 1000 at either end (at least one if there are 64 or more) may be an outlier; it is
   clipped.
3. The remaining values must fit 0..1, 0..255 or 0..65535, of which the smallest is used. They may
   exceed it by a tenth at either end. They must reach a sixteenth of 255 or 65535: 0..10 and
   0..4000 match no range, and would be nearly black.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps

Values = Float[np.ndarray, "height width"]

_RANGES = (1.0, 255.0, 65535.0)
_OVERSHOOT = 0.1
_MIN_FRACTION_REACHED = 1 / 16
_OUTLIERS_PER_PIXEL = 1 / 1000
_MIN_PIXELS_WITH_OUTLIERS = 64
_NO_DATA_FROM = 1e10
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT, _GDAL_NODATA = 258, 262, 339, 42113


def scale_gray(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Scale an opened image of mode ``I``, ``I;16`` or ``F`` to 0..255, and rotate it upright.

    Raises:
        ValueError: If its values match no known range.
    """
    values = np.array(ImageOps.exif_transpose(image), np.float32)
    transparent = values == image.info.get("transparency")
    if bits := _unsigned_bits(image):
        white = float(2**bits - 1)
    else:
        valid = _has_data(values, _nodata(image))
        white = _find_white(values[valid])
        values[~valid] = 0
    values *= 255 / white
    scaled = np.rint(values).clip(0, 255).astype(np.uint8)
    if _tag(image, _PHOTOMETRIC) == 0:  # white is zero; Pillow inverts only up to 8 bits
        scaled = 255 - scaled
    scaled[transparent] = 255
    return scaled


def _unsigned_bits(image: Image.Image) -> int | None:
    """Return the bit depth of an unsigned integer image of up to 16 bits; None for others."""
    if image.mode.startswith("I;16"):
        return int(_tag(image, _BITS_PER_SAMPLE) or 16)
    # Pillow opens 16-bit PNG (before 11) and PGM as 32 bits.
    return 16 if image.mode == "I" and image.format in {"PNG", "PPM"} else None


def _tag(image: Image.Image, tag: int) -> int | None:
    """Return the first value of a TIFF tag."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def _nodata(image: Image.Image) -> float | None:
    text = getattr(image, "tag_v2", {}).get(_GDAL_NODATA)
    try:
        return float(str(text).strip(" \0"))
    except ValueError:
        return None


def _has_data(values: Values, nodata: float | None) -> Bool[np.ndarray, "height width"]:
    valid = np.abs(values) < _NO_DATA_FROM  # False for NaN
    if nodata is not None:
        valid &= values != np.float32(nodata)
    negative = values[valid & (values < 0)]
    if negative.size and negative.min() == negative.max():
        valid &= values >= 0
    return valid


def _find_white(values: Float[np.ndarray, " pixels"]) -> float:
    """Return the upper end of the range that all pixels except outliers fit."""
    if not values.size:
        raise ValueError("no pixel has a finite value; remove the image")
    enough = values.size >= _MIN_PIXELS_WITH_OUTLIERS
    outliers = max(1, int(values.size * _OUTLIERS_PER_PIXEL)) if enough else 0
    ranks = [outliers, values.size - 1 - outliers]
    low, high = np.partition(values, ranks)[ranks]
    for white in _RANGES:
        inside = low >= -_OVERSHOOT * max(high, 1) and high <= (1 + _OVERSHOOT) * white
        if inside and (white == _RANGES[0] or high >= _MIN_FRACTION_REACHED * white):
            return white
    raise ValueError(
        f"the values range from {low:g} to {high:g}: expected 0..1, 0..255 or 0..65535; scale "
        "them to one of these, or save 8-bit RGB"
    )
