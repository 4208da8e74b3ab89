"""Read LabelMe's labels: one JSON file per image, with polygons, rectangles, circles and masks."""

import base64
import binascii
import io
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_codes

from pcd_hub.data.decoding import open_image
from pcd_hub.data.labelled.coco_validation import format_value, is_integer, is_number
from pcd_hub.data.labelled.formats.found import (
    FoundObject,
    FoundSplit,
    check_stated_size,
    flat,
    points_box,
    read_label_file,
    upright_size,
)
from pcd_hub.data.labelled.formats.pairs import find_pairs, read_pairs, split_folders
from pcd_hub.data.labelled.formats.rasters import placed_mask, with_mask
from pcd_hub.errors import DataError

IGNORED_LABEL = "__ignore__"
BACKGROUND_LABEL = "_background_"
_CIRCLE_POINTS = 64

Point = tuple[float, float]


def read_labelme(root: Path, split: str) -> FoundSplit:
    """Read a split below ``root``; images without a JSON file are left out.

    Raises:
        DataError: If the split or a file is missing or invalid.
    """
    return read_labelme_folders(*split_folders(root, split))


def read_labelme_folders(images: Path, labels: Path) -> FoundSplit:
    """Read the JSON files in one folder of the images in another (or the same)."""
    return read_pairs(find_pairs(images, labels, ".json"), _add)


def _add(found: FoundSplit, image: Path, labels: Path) -> None:
    content = read_json(labels)
    size = upright_size(image)
    stated = (content.get("imageWidth"), content.get("imageHeight"))
    check_stated_size(image, size, stated, labels)
    found.files.append(labels)
    groups = ((f"{labels}, shape {group[0][0]}", group) for group in _grouped(content["shapes"]))
    found.add(
        image,
        size,
        ((place, _parse([shape for _, shape in group], size, place)) for place, group in groups),
    )


def read_json(labels: Path) -> dict[str, Any]:
    """Read one file of LabelMe.

    Raises:
        DataError: If it is not one.
    """
    try:
        content = json.loads(read_label_file(labels).decode("utf-8-sig"))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{labels} cannot be read as JSON ({type(error).__name__}: {error}); save it again"
        ) from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{labels} has no list 'shapes': expected a JSON file of LabelMe")
    return content


def _grouped(shapes: list[dict[str, Any]]) -> Iterable[list[tuple[int, dict[str, Any]]]]:
    """Group the shapes of one object: those with the same label and group_id."""
    groups: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for number, shape in enumerate(shapes, 1):
        group = shape.get("group_id")
        label = str(shape.get("label"))
        key = (label, group) if is_integer(group) else number
        groups.setdefault(key, []).append((number, shape))
    return groups.values()


def _parse(shapes: list[dict[str, Any]], size: tuple[int, int], place: str) -> FoundObject | str:
    """Parse the shapes of one object, or describe what is wrong."""
    label = shapes[0].get("label")
    if not isinstance(label, str) or not label.strip():
        return f"label {format_value(label)}: expected a name"
    for shape in shapes:
        if error := _find_error(shape):
            return error
    found = FoundObject(
        label=label.strip(),
        box=[],
        is_ignored=label == IGNORED_LABEL,
        is_background=label == BACKGROUND_LABEL,
        place=place,
    )
    if any(shape.get("shape_type") == "mask" for shape in shapes):
        return _masked(found, shapes, size)
    polygons = [_outline(shape) for shape in shapes]
    is_box = len(shapes) == 1 and shapes[0].get("shape_type") == "rectangle"
    return replace(
        found,
        box=points_box([point for polygon in polygons for point in polygon]),
        segmentation=None if is_box else [flat(polygon) for polygon in polygons],
    )


_NUM_POINTS = {"polygon": (3,), "rectangle": (2, 4), "circle": (2,), "mask": (2,)}
"""Points of each kind of shape; a polygon may have more."""


def _find_error(shape: dict[str, Any]) -> str | None:
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    expected = _NUM_POINTS.get(kind) if isinstance(kind, str) else None
    if expected is None:
        return f"shape_type {format_value(kind)}: expected polygon, rectangle, circle or mask"
    number = len(points) if isinstance(points, list) and all(map(_is_point, points)) else 0
    if number < min(expected) or (kind != "polygon" and number not in expected):
        least = "at least 3" if kind == "polygon" else " or ".join(map(str, expected))
        return f"points {format_value(points)} of a {kind}: expected {least} of [x, y]"
    return None


def _is_point(point: object) -> bool:
    return (
        isinstance(point, list) and len(point) == 2 and all(is_number(v, -1e6, 1e6) for v in point)
    )


def _outline(shape: dict[str, Any]) -> list[Point]:
    points: list[Point] = [(float(x), float(y)) for x, y in shape["points"]]
    match shape.get("shape_type"):
        case "rectangle":  # two opposite corners, or all four, in any order
            left, top, width, height = points_box(points)
            right, bottom = left + width, top + height
            return [(left, top), (right, top), (right, bottom), (left, bottom)]
        case "circle":  # its centre and a point on it
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            angles = [2 * math.pi * step / _CIRCLE_POINTS for step in range(_CIRCLE_POINTS)]
            return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        case _:
            return points


def _masked(
    found: FoundObject, shapes: list[dict[str, Any]], size: tuple[int, int]
) -> FoundObject | str:
    """Join bitmaps and polygons of one object to a run-length code of the image's size."""
    codes = []
    for shape in shapes:
        if shape.get("shape_type") != "mask":
            polygon: Any = [flat(_outline(shape))]
            codes.append(mask_codes.merge(mask_codes.frPyObjects(polygon, size[1], size[0])))
            continue
        code = _bitmap(shape, size)
        if isinstance(code, str):
            return code
        codes.append(code)
    return with_mask(found, mask_codes.merge(codes))


def _bitmap(shape: dict[str, Any], size: tuple[int, int]) -> Any:
    """Decode a mask: a PNG of the pixels between its two points; describe what is wrong."""
    try:
        encoded = base64.b64decode(shape.get("mask") or "", validate=True)
        with open_image(io.BytesIO(encoded)) as image:
            inside = np.asarray(image.convert("L") if image.mode != "1" else image) > 0
    except (binascii.Error, TypeError, ValueError, OSError, Image.DecompressionBombError) as error:
        return f"its mask is no PNG ({type(error).__name__})"
    left, top = (round(value) for value in shape["points"][0])
    return placed_mask(inside, left, top, size)
