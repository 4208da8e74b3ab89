"""Scales gray images of more than 8 bits a pixel to 8, so that no single pixel decides how.

Unsigned integers of 9 to 16 bits are scaled by the depth of the file. Floats, signed and 32-bit
integers do not say where white is, so their values do:

1. NaN, infinity, magnitudes from 1e10 on, the TIFF's GDAL_NODATA value and a lone negative value
   (-9999, -32768, -1: all negative pixels hold the same) mean "no value"; such pixels are black.
2. One pixel in 1000 at either end (at least one of 64 or more) may be stray; it is cut.
3. The rest must keep to 0..1, 0..255 or 0..65535; the smallest range that holds it is taken. A
   tenth may be overshot at either end. At least a sixteenth of 255 and 65535 must be reached: 0..10
   and 0..4000 are neither, and would come out nearly black.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps

Values = Float[np.ndarray, "height width"]

_RANGES = (1.0, 255.0, 65535.0)
_OVERSHOOT = 0.1
_LEAST_REACHED = 1 / 16
_STRAYS_PER_PIXEL = 1 / 1000
_FEWEST_PIXELS_WITH_STRAYS = 64
_NO_VALUE_FROM = 1e10
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT, _GDAL_NODATA = 258, 262, 339, 42113


def scaled_gray(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Scale an opened image of mode ``I``, ``I;16`` or ``F``, turned upright, to 0..255.

    Raises:
        ValueError: If its values keep to no known range.
    """
    values = np.array(ImageOps.exif_transpose(image), np.float32)
    clear = values == image.info.get("transparency")
    if bits := _unsigned_bits(image):
        white = float(2**bits - 1)
    else:
        known = _has_value(values, _nodata(image))
        white = _white(values[known])
        values[~known] = 0
    values *= 255 / white
    scaled = np.rint(values).clip(0, 255).astype(np.uint8)
    if _tag(image, _PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds up to 8 bits
        scaled = 255 - scaled
    scaled[clear] = 255
    return scaled


def _unsigned_bits(image: Image.Image) -> int | None:
    """Depth of an unsigned integer image of up to 16 bits; None for the others."""
    if image.mode.startswith("I;16"):
        return int(_tag(image, _BITS_PER_SAMPLE) or 16)
    # Pillow opens 16-bit PNG (before 11) and PGM as 32 bits.
    return 16 if image.mode == "I" and image.format in {"PNG", "PPM"} else None


def _tag(image: Image.Image, tag: int) -> int | None:
    """First value of a TIFF's tag."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def _nodata(image: Image.Image) -> float | None:
    stated = getattr(image, "tag_v2", {}).get(_GDAL_NODATA)
    try:
        return float(str(stated).strip(" \0"))
    except ValueError:
        return None


def _has_value(values: Values, nodata: float | None) -> Bool[np.ndarray, "height width"]:
    known = np.abs(values) < _NO_VALUE_FROM  # False for NaN
    if nodata is not None:
        known &= values != np.float32(nodata)
    negative = values[known & (values < 0)]
    if negative.size and negative.min() == negative.max():
        known &= values >= 0
    return known


def _white(known: Float[np.ndarray, " pixels"]) -> float:
    """Return the upper end of the range that all pixels but the stray ones keep to."""
    if not known.size:
        raise ValueError("no pixel holds a finite value; remove the image")
    enough = known.size >= _FEWEST_PIXELS_WITH_STRAYS
    strays = max(1, int(known.size * _STRAYS_PER_PIXEL)) if enough else 0
    places = [strays, known.size - 1 - strays]
    low, high = np.partition(known, places)[places]
    for white in _RANGES:
        inside = low >= -_OVERSHOOT * max(high, 1) and high <= (1 + _OVERSHOOT) * white
        if inside and (white == _RANGES[0] or high >= _LEAST_REACHED * white):
            return white
    raise ValueError(
        f"its values go from {low:g} to {high:g}, and neither 0..1, 0..255 nor 0..65535 is the "
        "range of that; scale them to one of these, or save 8-bit RGB"
    )
