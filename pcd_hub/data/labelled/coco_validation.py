"""Check every number of a COCO annotation before pycocotools uses it.

pycocotools does not check its input: a polygon point at 1e30 crashes the process.
"""

import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAX_SIDE = 65_535
"""Largest width or height of an image in pixels, the limit of JPEG."""
MAX_PIXELS = 2**29 - 1
"""Largest image: a run length up to it has at most six characters in the compressed code."""
MIN_BOX_SIDE = 1 / 64
"""Smallest box side in pixels, which stays positive in float32 after a flip or resize."""

_MAX_ID = 2**63 - 1
_MAX_OUTLINE = 1_000_000  # total length of an object's polygons; pycocotools keeps 5 points a pixel
_TOLERANCE = 1.0  # pixels: in resized or rounded files, boxes exceed the image by fractions

Number = int | float
Box = tuple[Number, Number, Number, Number]


def is_number(value: object, minimum: Number, maximum: Number) -> bool:
    """Check that a value is a number within the bounds, and not a boolean or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return minimum <= value <= maximum


def is_integer(value: object, minimum: int = -_MAX_ID, maximum: int = _MAX_ID) -> bool:
    """Check that a value is an integer within the bounds; 3.0 is accepted."""
    return is_number(value, minimum, maximum) and value == int(value)  # pyright: ignore[reportArgumentType]


def format_value(value: object) -> str:
    """Format a value for an error message: on one line, shortened if long or deeply nested."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def find_annotation_error(
    entry: Mapping[str, Any], width: int, height: int, *, read_mask: bool
) -> str | None:
    """Describe what is wrong with an annotation of an image of this size; None if it is valid."""
    error = _find_scalar_error(entry) or _find_box_error(entry.get("bbox"), width, height)
    if error is None and read_mask:
        error = _find_mask_error(entry.get("segmentation"), width, height)
    return error


def clip_box(box: Sequence[Number], width: int, height: int) -> Box:
    """Convert [left, top, width, height] to left, top, right, bottom, clipped to the image."""
    left, top, box_width, box_height = box
    right, bottom = min(left + box_width, width), min(top + box_height, height)
    return max(0.0, left), max(0.0, top), float(right), float(bottom)


def _find_scalar_error(entry: Mapping[str, Any]) -> str | None:
    if not is_integer(entry.get("id", 0)):
        return f"id {format_value(entry['id'])}: expected a 64-bit integer"
    if not is_number(entry.get("area", 0), 0, MAX_PIXELS):
        return f"area {format_value(entry['area'])}: expected a number from 0 to {MAX_PIXELS}"
    for name in ("iscrowd", "ignore", "difficult"):
        if entry.get(name, 0) not in (0, 1):
            return f"{name} {format_value(entry[name])}: expected 0 or 1"
    return None


def _find_box_error(box: Any, width: int, height: int) -> str | None:
    largest = sys.float_info.max
    if not isinstance(box, list) or [is_number(v, -largest, largest) for v in box] != [True] * 4:
        return f"bbox {format_value(box)}: expected [left, top, width, height] in pixels"
    left, top, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return f"bbox {box}: expected width and height > 0"
    inside = -_TOLERANCE <= left < width and left + box_width <= width + _TOLERANCE
    inside &= -_TOLERANCE <= top < height and top + box_height <= height + _TOLERANCE
    if not inside:
        return f"bbox {box}: expected a box inside the {width} x {height} pixels"
    left, top, right, bottom = clip_box(box, width, height)
    if min(right - left, bottom - top) < MIN_BOX_SIDE:
        return (
            f"bbox {box} covers {max(0, right - left):.3g} x {max(0, bottom - top):.3g} pixels of "
            f"the image: expected at least {MIN_BOX_SIDE} on each side"
        )
    return None


def _find_mask_error(segmentation: Any, width: int, height: int) -> str | None:
    match segmentation:
        case None | []:
            return None
        case list():
            return _find_polygon_error(segmentation, width, height)
        case {"size": size, "counts": _} if size != [height, width]:
            return f"run-length mask of size {format_value(size)}: expected {[height, width]}"
        case {"size": _, "counts": counts}:
            lengths: Any = decode_run_lengths(counts) if isinstance(counts, str) else counts
            area = width * height
            valid = isinstance(lengths, list) and all(is_integer(each, 0, area) for each in lengths)
            valid = valid and sum(lengths) == area
            return None if valid else f"its run lengths do not fill the {width} x {height} pixels"
        case _:
            return (
                f"segmentation {format_value(segmentation)}: expected polygons or a run-length mask"
            )


def _find_polygon_error(polygons: list[Any], width: int, height: int) -> str | None:
    outline = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return (
                f"polygon {format_value(polygon)}: expected at least 3 points [x0, y0, x1, y1, ...]"
            )
        for values, side, axis in ((polygon[::2], width, "x"), (polygon[1::2], height, "y")):
            # Points outside are clipped; an image's size beyond the border is a mistake.
            invalid = [each for each in values if not is_number(each, -side, 2 * side)]
            if invalid:
                return (
                    f"a polygon has {axis} = {format_value(invalid[0])}: expected a number from "
                    f"{-side} to {2 * side}"
                )
        outline += _outline_length(polygon)
    if outline > _MAX_OUTLINE:
        return f"polygons with an outline of {outline:.3g} pixels: expected at most {_MAX_OUTLINE}"
    return None


def _outline_length(polygon: list[Number]) -> float:
    """Return the sum over all sides of the longer component."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(1).sum())


def decode_run_lengths(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; None if the code is invalid.

    Each character, minus "0", has six bits: five of the number, lowest first, and a continuation
    bit; the fifth bit of the last character is the sign. From the fourth on, a length is stored as
    the difference from the one before the last. More than six characters per length are rejected:
    no valid length needs them, and pycocotools reads them wrongly.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 25:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    return lengths if shift == 0 else None
