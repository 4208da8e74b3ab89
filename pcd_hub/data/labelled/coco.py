"""COCO-format data: one json, every entry of it checked, and the pictures it names."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pycocotools import mask as mask_codes

from pcd_hub.data.fingerprint import sizes_digest
from pcd_hub.data.labelled.coco_checks import (
    MOST_PIXELS,
    MOST_SIDE,
    Box,
    Number,
    annotation_fault,
    is_whole,
    shown,
)
from pcd_hub.data.uris import is_file
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

Segmentation = list[list[Number]] | dict[str, Any]
"""Polygons ``[x0, y0, x1, y1, ...]`` in pixels, or a run-length code of the picture's size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoObject:
    """One annotation."""

    annotation_id: int
    category_id: int
    box: Box
    """Left, top, width, height in pixels, as the file has it."""
    area: Number
    """Of the mask, if there is one, else of the box; decides what counts as small."""
    is_crowd: bool
    """A region of many: not trained on, and no false alarm in the test."""
    is_difficult: bool = False
    """Marked ``difficult`` or ``ignore``, as converters of Pascal VOC do; VOC's scores ignore it.

    It is trained on, as detectron2 does, and an object as any other to COCO's scores.
    """
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

    def fingerprint(self) -> str:
        """A short text that changes when the json does, or the size of a picture."""
        with self.file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        sizes = sizes_digest(len(self.images), lambda index: self.images[index].path)
        return f"{len(self.images)} pictures, json sha256 {digest}, sizes sha256 {sizes}"

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
    names = [
        (_whole(entry, "id", file, "'categories'"), str(entry.get("name", entry["id"])))
        for entry in content["categories"]
    ]
    _check_unique([key for key, _ in names], file, "category")
    categories = dict(names)
    frames = [_frame(entry, file, images) for entry in content["images"]]
    _check_unique([image.image_id for image in frames], file, "image")
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
            dropped.append(f"annotation {shown(entry.get('id'))}: {outcome}")
    _report(dropped, file, bad_annotations)
    whole = (replace(image, objects=tuple(objects[image.image_id])) for image in frames)
    return CocoSplit(file=file, images=tuple(whole), categories=categories)


def _content(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
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


def _whole(
    entry: dict[str, Any],
    name: str,
    file: Path,
    where: str,
    *,
    least: int = -(2**63),
    most: int = 2**63 - 1,
) -> int:
    value = entry.get(name)
    if not is_whole(value, least, most):
        raise DataError(
            f"{file}: in {where}, '{name}' of {shown(entry)} is no whole number from {least} to "
            f"{most}; mend the file"
        )
    return int(value)  # pyright: ignore[reportArgumentType]


def _check_unique(ids: Sequence[int], file: Path, what: str) -> None:
    if twice := [key for key, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{file} has two entries for {what} {twice[0]}; leave one")


def _frame(entry: dict[str, Any], file: Path, images: Path) -> CocoImage:
    """A picture, still without objects."""
    key = _whole(entry, "id", file, "'images'")
    width, height = (
        _whole(entry, name, file, "'images'", least=1, most=MOST_SIDE)
        for name in ("width", "height")
    )
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{file}: image {key} has {width} x {height} pixels, more than {MOST_PIXELS}; "
            "mend its size, or cut the image into parts"
        )
    path = images / str(entry.get("file_name"))
    if not is_file(path):
        name = str(path) if str(path).isprintable() else shown(entry["file_name"])
        raise DataError(f"{file}: image {key}: there is no {name}; fetch it, or remove the entry")
    return CocoImage(image_id=key, path=path, width=width, height=height, objects=())


def _image_of(
    entry: dict[str, Any], images: dict[int, CocoImage], categories: dict[int, str], file: Path
) -> CocoImage:
    name = f"annotation {shown(entry.get('id'))}"
    image = images.get(_whole(entry, "image_id", file, name))
    if image is None:
        raise DataError(
            f"{file}: {name} is of image {entry['image_id']}, which 'images' does not list; "
            "add the image, or remove the annotation"
        )
    if _whole(entry, "category_id", file, name) not in categories:
        raise DataError(
            f"{file}: {name} has category {entry['category_id']}, which 'categories' does not "
            f"list ({len(categories)} do: {', '.join(map(str, sorted(categories)[:10]))} ...); "
            "add the category, or remove the annotation"
        )
    return image


def _object(entry: dict[str, Any], image: CocoImage, *, read_masks: bool) -> CocoObject | str:
    """The object, or what is wrong with it."""
    fault = annotation_fault(entry, image.width, image.height, read_mask=read_masks)
    if fault:
        return f"{fault} (image {image.image_id})"
    segmentation = entry.get("segmentation") if read_masks else None
    if isinstance(segmentation, dict):  # nothing else, and whole numbers, whatever equals them
        size = [image.height, image.width]
        segmentation = {"size": size, "counts": segmentation["counts"]}
    left, top, width, height = entry["bbox"]
    return CocoObject(
        annotation_id=int(entry.get("id", 0)),
        category_id=int(entry["category_id"]),
        box=(left, top, width, height),
        area=_area(entry, segmentation, image),
        is_crowd=bool(entry.get("iscrowd", 0)),
        is_difficult=bool(entry.get("difficult", 0) or entry.get("ignore", 0)),
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


def _report(faults: list[str], file: Path, bad_annotations: Literal["error", "drop"]) -> None:
    if faults and bad_annotations == "error":
        raise DataError(
            f"{file}: {faults[0]} ({len(faults)} bad annotations in all); "
            "mend them, or leave them out with --data.bad-annotations drop"
        )
    if faults:
        log.warning("%s: %d bad annotations left out, first %s", file, len(faults), faults[0])
