"""COCO-format data: one json, every entry of it checked, and the pictures it names."""

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pycocotools import mask as mask_codes

from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

Segmentation = list[list[float]] | dict[str, Any]
"""Polygons ``[x0, y0, x1, y1, ...]`` in pixels, or a run-length code of the picture's size."""

_TOLERATED_PIXELS = 1.0  # files that were resized or rounded cross the border by fractions


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoObject:
    """One annotation."""

    annotation_id: int
    category_id: int
    box: tuple[float, float, float, float]
    """Left, top, width, height in pixels, as the file has it."""
    area: float
    """Of the mask, if there is one, else of the box; decides what counts as small."""
    is_crowd: bool
    """A region of many: not trained on, and no false alarm in the test."""
    segmentation: Segmentation | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoImage:
    """One picture and all that is known of it."""

    image_id: int
    path: Path
    width: int
    height: int
    objects: tuple[CocoObject, ...]


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """A checked split."""

    file: Path
    images: tuple[CocoImage, ...]
    categories: dict[int, str]
    """Names by the file's category id, which may have gaps."""

    def with_objects(self) -> tuple[CocoImage, ...]:
        """The pictures to train on: those with an object that is no crowd."""
        return tuple(
            image for image in self.images if any(not each.is_crowd for each in image.objects)
        )

    def truth(self) -> dict[str, Any]:
        """The file again, as the evaluator wants it; pictures without objects included."""
        return {
            "images": [
                {"id": image.image_id, "width": image.width, "height": image.height}
                for image in self.images
            ],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
            "annotations": [
                {
                    "id": each.annotation_id,
                    "image_id": image.image_id,
                    "category_id": each.category_id,
                    "bbox": list(each.box),
                    "area": each.area,
                    "iscrowd": int(each.is_crowd),
                    "segmentation": each.segmentation or [],
                }
                for image in self.images
                for each in image.objects
            ],
        }


def read_split(
    file: Path,
    images: Path,
    *,
    bad_annotations: Literal["error", "drop"] = "error",
    read_masks: bool = True,
) -> CocoSplit:
    """Read and check one json.

    Args:
        file: The json.
        images: Folder to which its file names are relative.
        bad_annotations: What becomes of impossible boxes and masks.
        read_masks: False leaves all masks unread, so that nothing is asked of them.

    Raises:
        DataError: With the file and the entry that is wrong.
    """
    content = _content(file)
    categories = {
        int(_number(entry, "id", file, "categories")): str(entry.get("name", entry["id"]))
        for entry in content["categories"]
    }
    _check_unique(content["categories"], file, "category")
    _check_unique(content["images"], file, "image")
    frames = [_frame(entry, file, images) for entry in content["images"]]
    if not frames:
        raise DataError(f"{file} lists no image")
    by_id = {image.image_id: image for image in frames}
    objects: dict[int, list[CocoObject]] = {key: [] for key in by_id}
    dropped: list[str] = []
    for entry in content["annotations"]:
        image = _image_of(entry, by_id, categories, file)
        outcome = _object(entry, image, read_masks=read_masks)
        if isinstance(outcome, CocoObject):
            objects[image.image_id].append(outcome)
        else:
            dropped.append(f"annotation {entry.get('id')}: {outcome}")
    _report(dropped, file, bad_annotations)
    whole = (replace(image, objects=tuple(objects[image.image_id])) for image in frames)
    return CocoSplit(file=file, images=tuple(whole), categories=categories)


def _content(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read as json ({type(error).__name__}: {error}); export it again"
        ) from error
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise DataError(
                f"{file} has no list of '{name}'; COCO's instances_SPLIT.json is expected"
            )
    return content


def _number(entry: dict[str, Any], name: str, file: Path, where: str) -> float:
    value = entry.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{file}: in '{where}', '{name}' of {str(entry)[:80]} is no number")
    return value


def _check_unique(entries: list[dict[str, Any]], file: Path, what: str) -> None:
    counts = Counter(str(entry.get("id")) for entry in entries)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise DataError(f"{file} has two entries for {what} {twice[0]}; leave one")


def _frame(entry: dict[str, Any], file: Path, images: Path) -> CocoImage:
    """A picture, still without objects."""
    key, width, height = (
        int(_number(entry, name, file, "images")) for name in ("id", "width", "height")
    )
    path = images / str(entry.get("file_name"))
    if not path.is_file():
        raise DataError(f"{file}: image {key}: there is no {path}; fetch it, or remove the entry")
    return CocoImage(image_id=key, path=path, width=width, height=height, objects=())


def _image_of(
    entry: dict[str, Any], images: dict[int, CocoImage], categories: dict[int, str], file: Path
) -> CocoImage:
    name = f"annotation {entry.get('id')}"
    image = images.get(int(_number(entry, "image_id", file, name)))
    if image is None:
        raise DataError(
            f"{file}: {name} is of image {entry['image_id']}, which 'images' does not list; "
            "add the image, or remove the annotation"
        )
    if int(_number(entry, "category_id", file, name)) not in categories:
        raise DataError(
            f"{file}: {name} has category {entry['category_id']}, which 'categories' does not "
            f"list ({len(categories)} do: {', '.join(map(str, sorted(categories)[:10]))} ...); "
            "add the category, or remove the annotation"
        )
    return image


def _object(entry: dict[str, Any], image: CocoImage, *, read_masks: bool) -> CocoObject | str:
    """The object, or what is wrong with it."""
    segmentation = entry.get("segmentation") if read_masks else None
    fault = _number_fault(entry) or _box_fault(entry["bbox"], image)
    fault = fault or _mask_fault(segmentation, image)
    if fault:
        return fault
    left, top, width, height = entry["bbox"]
    return CocoObject(
        annotation_id=int(entry.get("id", 0)),
        category_id=int(entry["category_id"]),
        box=(left, top, width, height),
        area=_area(entry, segmentation, image),
        is_crowd=bool(entry.get("iscrowd", 0)),
        segmentation=segmentation or None,
    )


def _area(entry: dict[str, Any], segmentation: Segmentation | None, image: CocoImage) -> float:
    if "area" in entry:
        return float(entry["area"])
    if not segmentation:
        return float(entry["bbox"][2] * entry["bbox"][3])
    return float(mask_codes.area(mask_code(segmentation, image.height, image.width)))


def mask_code(segmentation: Segmentation, height: int, width: int) -> Any:
    """Polygons or any run-length code as one compressed run-length code."""
    codes: Any = segmentation
    if isinstance(codes, list) or isinstance(codes["counts"], list):
        codes = mask_codes.frPyObjects(codes, height, width)
    return mask_codes.merge(codes) if isinstance(codes, list) else codes


def _number_fault(entry: dict[str, Any]) -> str | None:
    box = entry.get("bbox")
    if not _are_numbers(box) or len(entry["bbox"]) != 4:
        return f"bbox {box} is not [left, top, width, height]"
    for name in ("id", "area", "iscrowd"):
        if not _are_numbers([entry.get(name, 0)]):
            return f"its {name} {entry[name]!r} is no number"
    return None


def _box_fault(box: list[float], image: CocoImage) -> str | None:
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return f"bbox {box} has no size"
    slack = _TOLERATED_PIXELS
    inside = -slack <= left < image.width and left + width <= image.width + slack
    inside &= -slack <= top < image.height and top + height <= image.height + slack
    inside &= left + width > 0 and top + height > 0
    return None if inside else f"bbox {box} lies outside the {_size(image)}"


def _mask_fault(segmentation: Any, image: CocoImage) -> str | None:
    match segmentation:
        case None:
            return None
        case list():
            whole = all(
                _are_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0
                for polygon in segmentation
            )
            wrong = "a polygon is not a list of at least 3 points [x0, y0, x1, y1, ...]"
            return None if whole else wrong
        case {"size": [image.height, image.width], "counts": counts}:
            lengths: Any = run_lengths(counts) if isinstance(counts, str) else counts
            whole = _are_numbers(lengths) and min(lengths, default=-1) >= 0
            whole = whole and sum(lengths) == image.height * image.width
            return None if whole else f"its run lengths do not fill the {_size(image)}"
        case {"size": size, "counts": _}:
            return f"run-length mask of size {size} (height, width), not {_size(image)}"
        case _:
            return "its segmentation is neither polygons nor a run-length mask"


def run_lengths(text: str) -> list[int] | None:
    """The lengths in COCO's compressed code; None if it is none.

    Six bits a character from "0" on: five of the number, lowest first, and whether more follow;
    the last one's fifth bit is the sign. From the fourth on a length is stored as the difference
    from the one before the last.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    return lengths if shift == 0 else None


def _size(image: CocoImage) -> str:
    return f"{image.width} x {image.height} pixels of image {image.image_id}"


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )


def _report(faults: list[str], file: Path, bad_annotations: Literal["error", "drop"]) -> None:
    if faults and bad_annotations == "error":
        raise DataError(
            f"{file}: {faults[0]} ({len(faults)} bad annotations in all); "
            "mend them, or leave them out with --data.bad-annotations drop"
        )
    if faults:
        log.warning("%s: %d bad annotations left out, first %s", file, len(faults), faults[0])
