"""Bounds on every number of a COCO annotation file, checked before native code sees it.

pycocotools computes with whatever it is given: a polygon's point at 1e30 ends the process by a
signal.
"""

import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST_SIDE = 65_535
"""Pixels of an image's width or height, as JPEG's own bound."""
MOST_PIXELS = 2**29 - 1
"""Of an image: a run length of them has at most six characters in the compressed code."""
LEAST_BOX_SIDE = 1 / 64
"""Pixels. Two corners so far apart remain two in float32, mirrored or resized, up to MOST_SIDE."""

_MOST_ID = 2**63 - 1
_MOST_OUTLINE = 1_000_000  # pixels round an object's polygons; pycocotools keeps five points each
_TOLERATED_PIXELS = 1.0  # files that were resized or rounded cross the border by fractions


Number = int | float
Box = tuple[Number, Number, Number, Number]


def is_number(value: object, least: Number, most: Number) -> bool:
    """Whether it is a number in these bounds; neither booleans nor NaN are."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_whole(value: object, least: int = -_MOST_ID, most: int = _MOST_ID) -> bool:
    """Whether it is a whole number in these bounds; 3.0 is."""
    return is_number(value, least, most) and value == int(value)  # pyright: ignore[reportArgumentType]


def shown(value: object) -> str:
    """The value as errors show it: on one line, cut where it is long or deeply nested."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def annotation_fault(
    entry: Mapping[str, Any], width: int, height: int, *, read_mask: bool
) -> str | None:
    """What is wrong with an annotation of an image of this size, or None."""
    fault = _scalar_fault(entry) or _box_fault(entry.get("bbox"), width, height)
    if fault is None and read_mask:
        fault = _mask_fault(entry.get("segmentation"), width, height)
    return fault


def clipped_box(box: Sequence[Number], width: int, height: int) -> Box:
    """Left, top, right and bottom of [left, top, width, height], within the image."""
    left, top, box_width, box_height = box
    right, bottom = min(left + box_width, width), min(top + box_height, height)
    return max(0.0, left), max(0.0, top), float(right), float(bottom)


def _scalar_fault(entry: Mapping[str, Any]) -> str | None:
    if not is_whole(entry.get("id", 0)):
        return f"its id {shown(entry['id'])} is no whole number of 64 bits"
    if not is_number(entry.get("area", 0), 0, MOST_PIXELS):
        return f"its area {shown(entry['area'])} is no number from 0 to {MOST_PIXELS}"
    for name in ("iscrowd", "ignore", "difficult"):
        if entry.get(name, 0) not in (0, 1):
            return f"its {name} {shown(entry[name])} is neither 0 nor 1"
    return None


def _box_fault(box: Any, width: int, height: int) -> str | None:
    largest = sys.float_info.max
    if not isinstance(box, list) or [is_number(v, -largest, largest) for v in box] != [True] * 4:
        return f"bbox {shown(box)} is not [left, top, width, height] in pixels"
    left, top, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return f"bbox {box} has no size"
    slack = _TOLERATED_PIXELS
    inside = -slack <= left < width and left + box_width <= width + slack
    inside &= -slack <= top < height and top + box_height <= height + slack
    if not inside:
        return f"bbox {box} lies outside the {width} x {height} pixels"
    left, top, right, bottom = clipped_box(box, width, height)
    if min(right - left, bottom - top) < LEAST_BOX_SIDE:
        return (
            f"bbox {box} has {max(0, right - left):.3g} x {max(0, bottom - top):.3g} pixels in the "
            f"image, and needs {LEAST_BOX_SIDE} each way"
        )
    return None


def _mask_fault(segmentation: Any, width: int, height: int) -> str | None:
    match segmentation:
        case None | []:
            return None
        case list():
            return _polygons_fault(segmentation, width, height)
        case {"size": size, "counts": _} if size != [height, width]:
            return f"run-length mask of size {shown(size)} (height, width), not {[height, width]}"
        case {"size": _, "counts": counts}:
            lengths: Any = run_lengths(counts) if isinstance(counts, str) else counts
            most = width * height
            whole = isinstance(lengths, list) and all(is_whole(each, 0, most) for each in lengths)
            whole = whole and sum(lengths) == most
            return None if whole else f"its run lengths do not fill the {width} x {height} pixels"
        case _:
            return (
                f"its segmentation {shown(segmentation)} is neither polygons nor a run-length mask"
            )


def _polygons_fault(polygons: list[Any], width: int, height: int) -> str | None:
    outline = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return (
                f"a polygon is not a list of at least 3 points [x0, y0, x1, y1, ...]: "
                f"{shown(polygon)}"
            )
        for values, side, axis in ((polygon[::2], width, "x"), (polygon[1::2], height, "y")):
            # What lies outside the image is cut off; so far outside, it is a mistake.
            wrong = [each for each in values if not is_number(each, -side, 2 * side)]
            if wrong:
                return (
                    f"a polygon has {axis} = {shown(wrong[0])}, which is no number from {-side} "
                    f"to {2 * side}, an image's size beyond its borders"
                )
        outline += _outline(polygon)
    if outline > _MOST_OUTLINE:
        return f"its polygons have an outline of {outline:.3g} pixels, more than {_MOST_OUTLINE}"
    return None


def _outline(polygon: list[Number]) -> float:
    """Pixels round it, each side as long as its longer component."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(1).sum())


def run_lengths(text: str) -> list[int] | None:
    """The lengths in COCO's compressed code; None if it is none.

    Six bits a character from "0" on: five of the number, lowest first, and whether more follow;
    the last one's fifth bit is the sign. From the fourth on a length is stored as the difference
    from the one before the last. More than six characters a length are refused: no length has
    them, and pycocotools reads them wrong.
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
