"""Segmentation data sets: images with a class for every pixel, one URI each.

==========================  ====================================================================
``DIR``                     ``images/SPLIT/``, ``masks/SPLIT/NAME.png``, ``classes.json``
``ade20k:DIR``              ADEChallengeData2016: 150 classes, 0 is "other" and ignored
``voc:DIR``                 VOCdevkit/VOC2012: 21 classes, 255 is ignored
``cityscapes:DIR``          leftImg8bit and gtFine: the 19 classes of the benchmark
``hf-disk:DIR``             a Hugging Face dataset saved by ``save_to_disk``, with its splits
``hf:ORG/NAME``             a Hugging Face dataset, downloaded whole (a local folder works too)
==========================  ====================================================================

``classes.json`` holds ``{"classes": ["background", ...], "ignore_index": 255}``; a mask's value is
the index of a class, or the ignore index (null if there is none).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pcd_hub.data.decoding import as_mask, as_rgb, decode
from pcd_hub.data.files import image_paths, read_lines, split_folder
from pcd_hub.data.hf_datasets import load_split
from pcd_hub.data.labelled.sets import (
    IGNORE,
    MAX_CLASSES,
    LabelledImage,
    SegmentationSet,
    class_table,
)
from pcd_hub.data.uris import is_file, local_path, split_uri
from pcd_hub.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a Hugging Face dataset does not say of itself."""

    image: str = "image"
    mask: str = "mask"
    num_classes: int | None = None
    ignore: int | None = 255
    """Value of pixels without a label."""
    reduce_zero_label: bool = False
    """0 is no label, and class ``c`` is stored as ``c + 1``."""


def open_segmentation(uri: str, split: str, *, columns: Columns | None = None) -> SegmentationSet:
    """Open one split of the data set that ``uri`` names (the table at the top of this file).

    Raises:
        DataError: If there is no such place or split, or images and masks do not pair.
    """
    found = _opened(uri, split, columns or Columns())
    if not len(found):
        raise DataError(f"{uri} has no labelled image in its split {split}; look into its folders")
    return found


def _opened(uri: str, split: str, columns: Columns) -> SegmentationSet:
    scheme, rest = split_uri(uri, ("ade20k", "voc", "cityscapes", "hf-disk", "hf"))
    match scheme:
        case "ade20k":
            return _ade20k(local_path(rest), split)
        case "voc":
            return _voc(local_path(rest), split)
        case "cityscapes":
            return _cityscapes(local_path(rest), split)
        case "hf-disk" | "hf":
            return _from_hub(uri, split, columns)
        case _:
            return _from_folder(local_path(rest), split)


# Files.


def _from_folder(folder: Path, split: str) -> SegmentationSet:
    classes, ignore = _read_classes(folder / "classes.json")
    pairs = _paired(
        _split_files(folder / "images", split), _split_files(folder / "masks", split), folder
    )
    table = class_table(len(classes), ignore=ignore)
    return SegmentationSet(
        pairs, name=f"{folder.resolve().name}/{split}", classes=classes, table=table
    )


def _read_classes(path: Path) -> tuple[list[str], int | None]:
    try:
        stated = json.loads(path.read_bytes())  # UTF-8, UTF-16 or UTF-32
        classes, ignore = list(map(str, stated["classes"])), stated.get("ignore_index")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path} is missing or not {{"classes": ["background", ...], "ignore_index": 255}} '
            f"({type(error).__name__})"
        ) from error
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"{path} names {len(classes)} classes; there must be 2 to {MAX_CLASSES}")
    if ignore is not None and not (isinstance(ignore, int) and 0 <= ignore <= 255):
        raise DataError(f"{path}: ignore_index is {ignore!r}; it must be 0 to 255, or null")
    return classes, ignore


def _split_files(parent: Path, split: str) -> dict[str, Path]:
    """Image files of a split by their path without suffix."""
    folder = split_folder(parent, split)
    files: dict[str, Path] = {}
    for path in map(folder.joinpath, image_paths(folder)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise DataError(f"{path} and {files[name]} have one name; rename or remove one")
        files[name] = path
    return files


def _paired(
    images: Mapping[str, Path], masks: Mapping[str, Path], folder: Path
) -> list[LabelledImage]:
    for these, those, what in ((images, masks, "mask"), (masks, images, "image")):
        if alone := sorted(set(these) - set(those)):
            raise DataError(
                f"{these[alone[0]]} has no {what} of that name in {folder} ({len(alone)} of "
                f"{len(these)} have none); add or remove it"
            )
    return [_files(images[name], masks[name]) for name in images]


def _files(image: Path, mask: Path) -> LabelledImage:
    return LabelledImage(
        name=str(image),
        image=partial(decode, image, str(image), as_rgb),
        mask_name=str(mask),
        mask=partial(decode, mask, str(mask), as_mask),
    )


def _ade20k(folder: Path, split: str) -> SegmentationSet:
    pairs = _paired(
        _split_files(folder / "images", split), _split_files(folder / "annotations", split), folder
    )
    return SegmentationSet(
        pairs,
        name=f"ADE20K {split}",
        classes=_ade20k_names(folder / "objectInfo150.txt"),
        table=class_table(150, ignore=0, reduce_zero_label=True),
    )


def _ade20k_names(path: Path) -> list[str]:
    """The list that comes with the data: a line a class, its last column the names."""
    lines = read_lines(path)[1:] if is_file(path) else []
    names = [line.split("\t")[-1].strip().partition(",")[0] for line in lines]
    return names if len(names) == 150 else [f"class {number}" for number in range(1, 151)]


def _voc(folder: Path, split: str) -> SegmentationSet:
    listed = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not is_file(listed):
        raise DataError(
            f"there is no {listed}; give the folder VOCdevkit/VOC2012, split train or val"
        )
    rows = [
        _files(folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png")
        for name in map(str.strip, read_lines(listed))
    ]
    table = class_table(len(_VOC_CLASSES), ignore=255)
    return SegmentationSet(rows, name=f"VOC2012 {split}", classes=_VOC_CLASSES, table=table)


def _cityscapes(folder: Path, split: str) -> SegmentationSet:
    images = _without_ending(_split_files(folder / "leftImg8bit", split), "_leftImg8bit")
    masks = _without_ending(_split_files(folder / "gtFine", split), "_gtFine_labelIds")
    table = np.full(256, IGNORE, np.uint8)
    table[list(_CITYSCAPES_CLASSES)] = range(len(_CITYSCAPES_CLASSES))
    return SegmentationSet(
        _paired(images, masks, folder),
        name=f"Cityscapes {split}",
        classes=tuple(_CITYSCAPES_CLASSES.values()),
        table=table,
    )


def _without_ending(files: Mapping[str, Path], ending: str) -> dict[str, Path]:
    return {
        name.removesuffix(ending): path for name, path in files.items() if name.endswith(ending)
    }


# Hugging Face datasets.


def _from_hub(uri: str, split: str, columns: Columns) -> SegmentationSet:
    needed = {"--data.image-column": columns.image, "--data.mask-column": columns.mask}
    dataset = load_split(uri, split, columns=needed)
    for column in needed.values():
        if type(dataset.features[column]).__name__ != "Image":
            raise DataError(f"{uri}: the column '{column}' holds no images")
    if columns.num_classes is None or not 2 <= columns.num_classes <= MAX_CLASSES:
        raise DataError(
            f"{uri} does not say how many classes there are; give --data.num-classes, 2 to "
            f"{MAX_CLASSES} (now {columns.num_classes})"
        )
    if columns.ignore is not None and not 0 <= columns.ignore <= 255:
        raise DataError(f"--data.ignore {columns.ignore}: a value of a mask is 0 to 255")
    return SegmentationSet(
        _HubRows(dataset, columns, uri),
        name=f"{Path(uri.partition(':')[2]).name} {split}",
        classes=[f"class {number}" for number in range(columns.num_classes)],
        table=class_table(
            columns.num_classes,
            ignore=columns.ignore,
            reduce_zero_label=columns.reduce_zero_label,
        ),
    )


def _undecoded(dataset: Any, columns: Columns) -> Any:
    names = [columns.image, columns.mask]
    rows = dataset.select_columns(names)
    for name in names:
        rows = rows.cast_column(name, type(dataset.features[name])(decode=False))
    return rows


class _HubRows:
    def __init__(self, dataset: Any, columns: Columns, uri: str) -> None:
        self._rows = _undecoded(dataset, columns)
        self._fingerprint = f"{len(dataset)} rows, datasets fingerprint {dataset._fingerprint}"
        self._columns = columns
        self._uri = uri

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> str:
        """The library's own fingerprint of the table."""
        return self._fingerprint

    def __getitem__(self, index: int) -> LabelledImage:
        row, name = self._rows[index], f"{self._uri}[{index}]"
        mask_name = f"{name}, {self._columns.mask}"
        return LabelledImage(
            name=name,
            image=partial(decode, row[self._columns.image], name, as_rgb),
            mask_name=mask_name,
            mask=partial(decode, row[self._columns.mask], mask_name, as_mask),
        )


_VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

_CITYSCAPES_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle",
    33: "bicycle",
}  # fmt: skip
"""The classes of the benchmark by their value in ``*_labelIds.png``."""
