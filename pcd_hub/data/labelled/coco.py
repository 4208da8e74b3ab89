"""Read and check data sets in COCO format."""

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as mask_codes

from pcd_hub.data.labelled.coco_validation import (
    MAX_PIXELS,
    MAX_SIDE,
    Box,
    Number,
    find_annotation_error,
    format_value,
    is_integer,
)
from pcd_hub.data.sources.files import hash_names, hash_sizes
from pcd_hub.data.sources.uris import is_file
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

Segmentation = list[list[Number]] | dict[str, Any]
"""Polygons ``[x0, y0, x1, y1, ...]`` in pixels, or a run-length code of the image's size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoObject:
    """An annotated object."""

    annotation_id: int
    category_id: int
    box: Box
    """Left, top, width, height in pixels, as in the file."""
    area: Number
    """Area of the mask, or of the box if there is no mask; it defines small, medium and large."""
    is_crowd: bool
    """A region with many objects; excluded from training and neutral in the evaluation."""
    is_difficult: bool = False
    """Marked ``difficult`` or ``ignore``, as in Pascal VOC.

    VOC's metrics ignore it. Training and COCO's metrics treat it as any other object, as in
    detectron2.
    """
    segmentation: Segmentation | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoImage:
    """An image and its annotated objects."""

    image_id: int
    path: Path
    width: int
    height: int
    objects: tuple[CocoObject, ...]


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """One split, after all checks."""

    file: Path
    images: tuple[CocoImage, ...]
    categories: dict[int, str]
    """Name for each category id; the ids may have gaps."""
    label_files: tuple[Path, ...] = ()
    """All files with labels, if they are not the one JSON file."""
    unlabelled: tuple[Path, ...] = ()
    """Images without a label file."""
    unmatched: tuple[str, ...] = ()
    """Label files without an image."""
    dropped: tuple[str, ...] = ()
    """Invalid annotations that were left out."""

    def with_objects(self) -> tuple[CocoImage, ...]:
        """Return the images to train on: those with an object that is not a crowd."""
        return tuple(
            image for image in self.images if any(not each.is_crowd for each in image.objects)
        )

    def fingerprint(self) -> str:
        """Return a short text that changes when the JSON or the size of an image file changes."""
        files = self.label_files or (self.file,)
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        digest = hash_names(digests) if self.label_files else digests[0][:16]
        sizes = hash_sizes(len(self.images), lambda index: self.images[index].path)
        kind = "labels" if self.label_files else "json"
        return f"{len(self.images)} pictures, {kind} sha256 {digest}, sizes sha256 {sizes}"

    def to_coco(self) -> dict[str, Any]:
        """Return the annotations in COCO format for the evaluator, all images included."""
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
    """Read and check one JSON file.

    Args:
        file: The JSON file.
        images: Folder to which its file names are relative.
        bad_annotations: Raise an error for invalid boxes and masks, or drop their annotations.
        read_masks: Read and check masks; if False, they are ignored.

    Raises:
        DataError: If an entry is invalid; the message names the file and the entry.
    """
    content = _read_json(file)
    names = [
        (_integer(entry, "id", file, "'categories'"), str(entry.get("name", entry["id"])))
        for entry in content["categories"]
    ]
    _check_unique([key for key, _ in names], file, "category")
    categories = dict(names)
    empty_images = [_parse_image(entry, file, images) for entry in content["images"]]
    _check_unique([image.image_id for image in empty_images], file, "image")
    if not empty_images:
        raise DataError(f"{file} lists no image: expected at least 1 in 'images'")
    by_id = {image.image_id: image for image in empty_images}
    objects: dict[int, list[CocoObject]] = {key: [] for key in by_id}
    dropped: list[str] = []
    for entry in content["annotations"]:
        image = _find_image(entry, by_id, categories, file)
        parsed = parse_object(entry, image, read_masks=read_masks)
        if isinstance(parsed, CocoObject):
            objects[image.image_id].append(parsed)
        else:
            dropped.append(f"annotation {format_value(entry.get('id'))}: {parsed}")
    raise_or_log(dropped, file, bad_annotations)
    complete = (replace(image, objects=tuple(objects[image.image_id])) for image in empty_images)
    return CocoSplit(
        file=file, images=tuple(complete), categories=categories, dropped=tuple(dropped)
    )


def _read_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read as JSON ({type(error).__name__}: {error}); export it again"
        ) from error
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise DataError(f"{file} has no list '{name}': expected COCO's instances_SPLIT.json")
    return content


def _integer(
    entry: dict[str, Any],
    name: str,
    file: Path,
    where: str,
    *,
    minimum: int = -(2**63),
    maximum: int = 2**63 - 1,
) -> int:
    value = entry.get(name)
    if not is_integer(value, minimum, maximum):
        raise DataError(
            f"{file}: '{name}' in {where}: expected an integer from {minimum} to {maximum}, found "
            f"{format_value(entry)}; correct the file"
        )
    return int(value)  # pyright: ignore[reportArgumentType]


def _check_unique(ids: Sequence[int], file: Path, kind: str) -> None:
    if repeated := [key for key, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{file} has several entries for {kind} {repeated[0]}: expected 1")


def _parse_image(entry: dict[str, Any], file: Path, images: Path) -> CocoImage:
    """Parse the entry of an image, without its objects."""
    image_id = _integer(entry, "id", file, "'images'")
    width, height = (
        _integer(entry, name, file, "'images'", minimum=1, maximum=MAX_SIDE)
        for name in ("width", "height")
    )
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{file}: image {image_id} has {width} x {height} pixels: expected at most "
            f"{MAX_PIXELS}; correct its size, or split the image"
        )
    path = images / str(entry.get("file_name"))
    if not is_file(path):
        name = str(path) if str(path).isprintable() else format_value(entry["file_name"])
        raise DataError(f"{file}: image {image_id}: no file {name}; add it, or remove the entry")
    return CocoImage(image_id=image_id, path=path, width=width, height=height, objects=())


def _find_image(
    entry: dict[str, Any], images: dict[int, CocoImage], categories: dict[int, str], file: Path
) -> CocoImage:
    name = f"annotation {format_value(entry.get('id'))}"
    image = images.get(_integer(entry, "image_id", file, name))
    if image is None:
        raise DataError(
            f"{file}: {name} refers to image {entry['image_id']}, which is not in 'images'; add "
            "the image, or remove the annotation"
        )
    if _integer(entry, "category_id", file, name) not in categories:
        raise DataError(
            f"{file}: {name} has category {entry['category_id']}: expected one of the "
            f"{len(categories)} in 'categories' "
            f"({', '.join(map(str, sorted(categories)[:10]))} ...); add the category, or remove "
            "the annotation"
        )
    return image


def parse_object(entry: dict[str, Any], image: CocoImage, *, read_masks: bool) -> CocoObject | str:
    """Parse an annotation, or describe what is wrong with it."""
    error = find_annotation_error(entry, image.width, image.height, read_mask=read_masks)
    if error:
        return f"{error} (image {image.image_id})"
    segmentation = entry.get("segmentation") if read_masks else None
    if isinstance(segmentation, dict):  # integers of type int, and no other keys
        size = [image.height, image.width]
        segmentation = {"size": size, "counts": segmentation["counts"]}
    left, top, width, height = entry["bbox"]
    return CocoObject(
        annotation_id=int(entry.get("id", 0)),
        category_id=int(entry["category_id"]),
        box=(left, top, width, height),
        area=_find_area(entry, segmentation, image),
        is_crowd=bool(entry.get("iscrowd", 0)),
        is_difficult=bool(entry.get("difficult", 0) or entry.get("ignore", 0)),
        segmentation=segmentation or None,
    )


def _find_area(entry: dict[str, Any], segmentation: Segmentation | None, image: CocoImage) -> float:
    if area := entry.get("area"):  # some tools write 0
        return float(area)
    if not segmentation:
        return float(entry["bbox"][2] * entry["bbox"][3])
    return float(mask_codes.area(to_run_length_code(segmentation, image.height, image.width)))


def to_run_length_code(segmentation: Segmentation, height: int, width: int) -> Any:
    """Convert polygons or any run-length code to one compressed run-length code."""
    codes: Any = segmentation
    if isinstance(codes, list) or isinstance(codes["counts"], list):
        codes = mask_codes.frPyObjects(codes, height, width)
    return mask_codes.merge(codes) if isinstance(codes, list) else codes


def decode_run_length_code(code: Any) -> UInt8[np.ndarray, "height width"]:
    """Decode a compressed run-length code to a mask of 0 and 1."""
    with warnings.catch_warnings():  # pycocotools 2.0.11 lacks NumPy 2's `copy` argument
        warnings.simplefilter("ignore", DeprecationWarning)
        return mask_codes.decode(code)


def raise_or_log(errors: list[str], file: Path, bad_annotations: Literal["error", "drop"]) -> None:
    """Raise an error for invalid annotations, or log how many are left out.

    Raises:
        DataError: If there are any and they are not to be dropped.
    """
    if errors and bad_annotations == "error":
        raise DataError(
            f"{file}: {errors[0]} (1 of {len(errors)} invalid annotations); correct them, or use "
            "--data.bad-annotations drop"
        )
    if errors:
        log.warning("%s: dropped %d invalid annotations, first %s", file, len(errors), errors[0])
