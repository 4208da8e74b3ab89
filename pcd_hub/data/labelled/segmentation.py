"""Open semantic segmentation data sets by URI.

==========================  ====================================================================
``DIR``                     ``images/SPLIT/``, ``masks/SPLIT/NAME.png``, ``classes.json``
``ade20k:DIR``              ADEChallengeData2016: 150 classes, 0 is "other" and ignored
``voc:DIR``                 VOCdevkit/VOC2012: 21 classes, 255 is ignored
``cityscapes:DIR``          leftImg8bit and gtFine: the 19 classes of the benchmark
``hf-disk:DIR``             a Hugging Face dataset saved by ``save_to_disk``, with its splits
``hf:ORG/NAME``             a Hugging Face dataset, downloaded first, or a local folder
==========================  ====================================================================

``classes.json`` contains ``{"classes": ["background", ...], "ignore_index": 255}``. The values of a
mask are class indices, or the ignore index (null for none).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pcd_hub.data.decoding import as_mask, as_rgb, decode
from pcd_hub.data.labelled.segmentation_set import (
    IGNORE,
    MAX_CLASSES,
    LabelledImage,
    SegmentationSet,
    class_table,
)
from pcd_hub.data.sources.files import find_image_paths, find_split_folder, read_lines
from pcd_hub.data.sources.hf_datasets import HFImages, load_split
from pcd_hub.data.sources.uris import is_file, local_path, split_uri
from pcd_hub.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns and classes of a Hugging Face dataset, which it does not declare."""

    image: str = "image"
    mask: str = "mask"
    num_classes: int | None = None
    ignore: int | None = 255
    """Mask value of pixels without a label."""
    reduce_zero_label: bool = False
    """Mask value 0 means no label, and class ``c`` is stored as ``c + 1``."""


def open_segmentation(uri: str, split: str, *, columns: Columns | None = None) -> SegmentationSet:
    """Open one split of the data set that ``uri`` names (see the table at the top of this file).

    Raises:
        DataError: If the data set or split does not exist, or images and masks do not match.
    """
    images = _open(uri, split, columns or Columns())
    if not len(images):
        raise DataError(f"{uri} has no labelled image in its split {split}: expected at least 1")
    return images


def _open(uri: str, split: str, columns: Columns) -> SegmentationSet:
    scheme, rest = split_uri(uri, ("ade20k", "voc", "cityscapes", "hf-disk", "hf"))
    match scheme:
        case "ade20k":
            return _ade20k(local_path(rest), split)
        case "voc":
            return _voc(local_path(rest), split)
        case "cityscapes":
            return _cityscapes(local_path(rest), split)
        case "hf-disk" | "hf":
            return _from_hf(uri, split, columns)
        case _:
            return _from_folder(local_path(rest), split)


def _from_folder(folder: Path, split: str) -> SegmentationSet:
    classes, ignore = _read_classes(folder / "classes.json")
    pairs = _pair(
        _split_files(folder / "images", split), _split_files(folder / "masks", split), folder
    )
    table = class_table(len(classes), ignore=ignore)
    return SegmentationSet(
        pairs, name=f"{folder.resolve().name}/{split}", classes=classes, table=table
    )


def _read_classes(path: Path) -> tuple[list[str], int | None]:
    try:
        content = json.loads(path.read_bytes())  # UTF-8, UTF-16 or UTF-32
        classes, ignore = list(map(str, content["classes"])), content.get("ignore_index")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}): expected "
            '{"classes": ["background", ...], "ignore_index": 255}'
        ) from error
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"{path} lists {len(classes)} classes: expected 2 to {MAX_CLASSES}")
    if ignore is not None and not (isinstance(ignore, int) and 0 <= ignore <= 255):
        raise DataError(
            f"{path}: ignore_index {ignore!r}: expected an integer from 0 to 255, or null"
        )
    return classes, ignore


def _split_files(parent: Path, split: str) -> dict[str, Path]:
    """Return the image files of a split by their relative path without suffix."""
    folder = find_split_folder(parent, split)
    files: dict[str, Path] = {}
    for path in map(folder.joinpath, find_image_paths(folder)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise DataError(f"{path} and {files[name]} have the same name; rename or remove one")
        files[name] = path
    return files


def _pair(
    images: Mapping[str, Path], masks: Mapping[str, Path], folder: Path
) -> list[LabelledImage]:
    for files, others, kind in ((images, masks, "mask"), (masks, images, "image")):
        if unmatched := sorted(set(files) - set(others)):
            raise DataError(
                f"{files[unmatched[0]]} has no {kind} of the same name in {folder} "
                f"({len(unmatched)} of {len(files)} have none); add or remove it"
            )
    return [_labelled_image(images[name], masks[name]) for name in images]


def _labelled_image(image: Path, mask: Path) -> LabelledImage:
    return LabelledImage(
        name=str(image),
        image=partial(decode, image, str(image), as_rgb),
        mask_name=str(mask),
        mask=partial(decode, mask, str(mask), as_mask),
    )


def _ade20k(folder: Path, split: str) -> SegmentationSet:
    pairs = _pair(
        _split_files(folder / "images", split), _split_files(folder / "annotations", split), folder
    )
    return SegmentationSet(
        pairs,
        name=f"ADE20K {split}",
        classes=_ade20k_names(folder / "objectInfo150.txt"),
        table=class_table(150, ignore=0, reduce_zero_label=True),
    )


def _ade20k_names(path: Path) -> list[str]:
    """Read the class names from the last column of the list that comes with the data."""
    lines = read_lines(path)[1:] if is_file(path) else []
    names = [line.split("\t")[-1].strip().partition(",")[0] for line in lines]
    return names if len(names) == 150 else [f"class {number}" for number in range(1, 151)]


def _voc(folder: Path, split: str) -> SegmentationSet:
    names = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not is_file(names):
        raise DataError(
            f"there is no {names}: expected the folder VOCdevkit/VOC2012 and split train or val"
        )
    rows = [
        _labelled_image(
            folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png"
        )
        for name in map(str.strip, read_lines(names))
    ]
    table = class_table(len(_VOC_CLASSES), ignore=255)
    return SegmentationSet(rows, name=f"VOC2012 {split}", classes=_VOC_CLASSES, table=table)


def _cityscapes(folder: Path, split: str) -> SegmentationSet:
    images = _strip_ending(_split_files(folder / "leftImg8bit", split), "_leftImg8bit")
    masks = _strip_ending(_split_files(folder / "gtFine", split), "_gtFine_labelIds")
    table = np.full(256, IGNORE, np.uint8)
    table[list(_CITYSCAPES_CLASSES)] = range(len(_CITYSCAPES_CLASSES))
    return SegmentationSet(
        _pair(images, masks, folder),
        name=f"Cityscapes {split}",
        classes=tuple(_CITYSCAPES_CLASSES.values()),
        table=table,
    )


def _strip_ending(files: Mapping[str, Path], ending: str) -> dict[str, Path]:
    return {
        name.removesuffix(ending): path for name, path in files.items() if name.endswith(ending)
    }


def _from_hf(uri: str, split: str, columns: Columns) -> SegmentationSet:
    names = {"--data.image-column": columns.image, "--data.mask-column": columns.mask}
    dataset = load_split(uri, split, columns=names)
    for option, column in names.items():
        if (kind := type(dataset.features[column]).__name__) != "Image":
            raise DataError(
                f"{uri}: column '{column}' has the type {kind}: expected Image; set {option}"
            )
    if columns.num_classes is None or not 2 <= columns.num_classes <= MAX_CLASSES:
        raise DataError(
            f"--data.num-classes {columns.num_classes}: expected 2 to {MAX_CLASSES}, as {uri} does "
            "not declare its classes"
        )
    if columns.ignore is not None and not 0 <= columns.ignore <= 255:
        raise DataError(f"--data.ignore {columns.ignore}: expected a mask value from 0 to 255")
    return SegmentationSet(
        _HFRows(
            HFImages(dataset, uri=uri, column=columns.image),
            HFImages(dataset, uri=f"{uri}, {columns.mask}", column=columns.mask),
        ),
        name=f"{Path(uri.partition(':')[2]).name} {split}",
        classes=[f"class {number}" for number in range(columns.num_classes)],
        table=class_table(
            columns.num_classes,
            ignore=columns.ignore,
            reduce_zero_label=columns.reduce_zero_label,
        ),
    )


@dataclass(frozen=True)
class _HFRows:
    """Rows of a Hugging Face dataset with an image column and a mask column."""

    images: HFImages
    masks: HFImages

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def __getitem__(self, index: int) -> LabelledImage:
        return LabelledImage(
            name=self.images.full_name(index),
            image=partial(self.images.read, index, as_rgb),
            mask_name=self.masks.full_name(index),
            mask=partial(self.masks.read, index, as_mask),
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
"""Classes of the benchmark by their value in ``*_labelIds.png``."""
