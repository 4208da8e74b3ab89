"""Read the splits of a data set in any format, and check every value as for COCO's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pcd_hub.data.labelled.coco import (
    CocoImage,
    CocoObject,
    CocoSplit,
    parse_object,
    raise_or_log,
)
from pcd_hub.data.labelled.coco_validation import clip_box
from pcd_hub.data.labelled.formats.cvat import read_cvat, read_cvat_file
from pcd_hub.data.labelled.formats.found import FoundObject, FoundSplit
from pcd_hub.data.labelled.formats.labelme import read_labelme, read_labelme_folders
from pcd_hub.data.labelled.formats.voc import read_voc, read_voc_folders
from pcd_hub.data.labelled.formats.yolo import read_yolo, read_yolo_folders
from pcd_hub.data.sources.uris import is_dir
from pcd_hub.errors import DataError

ObjectFormat = Literal["yolo", "voc", "labelme", "cvat"]

_SPLITS: Mapping[ObjectFormat, Callable[[Path, str], FoundSplit]] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "cvat": read_cvat,
}
_PLACES: Mapping[ObjectFormat, Callable[[Path, Path], FoundSplit]] = {
    "yolo": read_yolo_folders,
    "voc": read_voc_folders,
    "labelme": read_labelme_folders,
    "cvat": read_cvat_file,
}


def find_objects(root: Path, split: str, label_format: ObjectFormat) -> FoundSplit:
    """Read the labels of a split below ``root``.

    Raises:
        DataError: If they are missing or invalid.
    """
    if not is_dir(root):
        raise DataError(f"there is no folder {root}; name the data set's with --data.source")
    return _SPLITS[label_format](root, split)


def find_objects_in(images: Path, labels: Path, label_format: ObjectFormat) -> FoundSplit:
    """Read the labels in a folder (cvat: a file) of the images in another folder.

    Raises:
        DataError: If they are missing or invalid.
    """
    if label_format != "cvat" and not is_dir(labels):
        raise DataError(f"there is no folder {labels}: expected the {label_format} labels")
    if not is_dir(images):
        raise DataError(
            f"there is no folder {images}; name the images' folder with --data.train-images and "
            "--data.test-images"
        )
    return _PLACES[label_format](images, labels)


def class_names(splits: Sequence[FoundSplit], *, for_masks: bool = False) -> tuple[str, ...]:
    """Return the names of the classes: as listed, or all that occur in any split, sorted.

    Args:
        splits: The splits.
        for_masks: Count background that is drawn as an object.

    Raises:
        DataError: If the splits list different names, or there is none.
    """
    listed = [split for split in splits if split.names is not None]
    for split in listed[1:]:
        if split.names != listed[0].names:
            odd = set(split.names or ()) ^ set(listed[0].names or ())
            raise DataError(
                f"{split.place} and {listed[0].place} differ in their classes "
                f"({', '.join(sorted(odd)[:3]) or 'their order'}); expected the same in both"
            )
    if listed:
        return listed[0].names or ()
    occurring = {
        each.label
        for split in splits
        for image in split.images
        for each in image.objects
        if not each.is_ignored and (for_masks or not each.is_background)
    }
    if not occurring:
        faults = [fault for split in splits for fault in split.faults]
        why = f"; {len(faults)} cannot be read, the first is {faults[0]}" if faults else ""
        raise DataError(f"{splits[0].place} has no object in any split, expected at least one{why}")
    return tuple(sorted(occurring))


def to_split(
    found: FoundSplit,
    names: Sequence[str],
    *,
    bad_annotations: Literal["error", "drop"] = "error",
    read_masks: bool = True,
    for_masks: bool = False,
) -> CocoSplit:
    """Check every annotation and number images, objects and classes from 1.

    Args:
        found: Labels of one split.
        names: Names of the classes.
        bad_annotations: Raise an error for invalid annotations, or drop them.
        read_masks: Read and check masks; if False, they are ignored.
        for_masks: Keep regions to ignore, as crowds of class 0, and background.

    Raises:
        DataError: If an annotation is invalid, or there is no image.
    """
    if not found.images:
        raise DataError(f"{found.place} lists no image: expected at least 1")
    ids = {name: number for number, name in enumerate(names, 1)}
    faults, number, images = list(found.faults), 0, []
    for image_id, each in enumerate(found.images, 1):
        empty = CocoImage(
            image_id=image_id, path=each.path, width=each.width, height=each.height, objects=()
        )
        objects: list[CocoObject] = []
        for item in each.objects:
            if (item.is_ignored or item.is_background) and not for_masks:
                continue
            number += 1
            parsed = _parse(item, number, empty, ids, read_masks=read_masks)
            if isinstance(parsed, CocoObject):
                objects.append(parsed)
            else:
                faults.append(f"{item.place}: {parsed}")
        images.append(replace(empty, objects=tuple(objects)))
    raise_or_log(faults, found.place, bad_annotations)
    return CocoSplit(
        file=found.place,
        images=tuple(images),
        categories={number: name for name, number in ids.items()},
        label_files=tuple(found.files),
        unlabelled=tuple(found.unlabelled),
        unmatched=tuple(found.unmatched),
        dropped=tuple(faults),
    )


def _parse(
    item: FoundObject, number: int, image: CocoImage, ids: Mapping[str, int], *, read_masks: bool
) -> CocoObject | str:
    category = 0 if item.is_ignored else ids.get(item.label)
    if category is None:
        return f"class '{item.label[:60]}': expected one of the {len(ids)} that the labels list"
    box = item.box
    if isinstance(item.segmentation, list):  # an outline may cross the border of the image
        left, top, right, bottom = clip_box(box, image.width, image.height)
        if left < right and top < bottom:  # neither outside nor NaN, which is an error below
            box = [left, top, right - left, bottom - top]
    entry: dict[str, Any] = {
        "id": number,
        "category_id": category,
        "bbox": box,
        "segmentation": item.segmentation,
        "iscrowd": int(item.is_ignored),
        "difficult": int(item.is_difficult),
    }
    return parse_object(entry, image, read_masks=read_masks)
