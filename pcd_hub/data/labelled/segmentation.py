"""Open semantic segmentation data sets by URI.

==========================  ====================================================================
``DIR``                     ``images/SPLIT/``, ``masks/SPLIT/NAME.png``, ``classes.json``, and the
                            other layouts of ``masks/files.py`` and ``masks/class_lists.py``
``ade20k:DIR``              ADEChallengeData2016: 150 classes, 0 is "other" and ignored
``voc:DIR``                 VOCdevkit/VOC2012: 21 classes, 255 is ignored
``cityscapes:DIR``          leftImg8bit and gtFine: the 19 classes of the benchmark
``hf-disk:DIR``             a Hugging Face dataset saved by ``save_to_disk``, with its splits
``hf:ORG/NAME``             a Hugging Face dataset, downloaded first, or a local folder
==========================  ====================================================================

``classes.json`` contains ``{"classes": ["background", ...], "ignore_index": 255}``. The values of a
mask are class indices, or the ignore index (null for none). Masks drawn from objects:
``masks/objects.py``.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pcd_hub.data.decoding import as_mask, as_rgb
from pcd_hub.data.labelled.masks.files import (
    Files,
    labelled_image,
    open_mask_folder,
    pair,
    split_files,
)
from pcd_hub.data.labelled.segmentation_set import (
    IGNORE,
    MAX_CLASSES,
    LabelledImage,
    SegmentationSet,
    class_table,
)
from pcd_hub.data.sources.files import read_lines
from pcd_hub.data.sources.hf_datasets import HFImages, load_split
from pcd_hub.data.sources.uris import is_file, local_path, split_uri
from pcd_hub.errors import DataError

SCHEMES = ("ade20k", "voc", "cityscapes", "hf-disk", "hf")


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


def open_segmentation(
    uri: str, split: str, *, columns: Columns | None = None, strict: bool = True
) -> SegmentationSet:
    """Open one split of the data set that ``uri`` names (see the table at the top of this file).

    Args:
        uri: The data set.
        split: Name of the split.
        columns: Columns and classes of a Hugging Face dataset.
        strict: Raise an error for an image without mask or a mask without image; otherwise leave
            them out.

    Raises:
        DataError: If the data set or split does not exist, or images and masks do not match.
    """
    images = _open(uri, split, columns or Columns(), strict=strict)
    if not len(images):
        raise DataError(f"{uri} has no labelled image in its split {split}: expected at least 1")
    return images


def _open(uri: str, split: str, columns: Columns, *, strict: bool) -> SegmentationSet:
    scheme, rest = split_uri(uri, SCHEMES)
    match scheme:
        case "ade20k":
            return _ade20k(local_path(rest), split, strict=strict)
        case "voc":
            return _voc(local_path(rest), split)
        case "cityscapes":
            return _cityscapes(local_path(rest), split, strict=strict)
        case "hf-disk" | "hf":
            return _from_hf(uri, split, columns)
        case _:
            return open_mask_folder(local_path(rest), split, strict=strict)


def _ade20k(folder: Path, split: str, *, strict: bool) -> SegmentationSet:
    images = split_files(folder / "images", split)
    masks = split_files(folder / "annotations", split)
    rows, left_out = pair(images, masks, folder, strict=strict)
    return SegmentationSet(
        rows,
        left_out=left_out,
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
        labelled_image(
            folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png"
        )
        for name in map(str.strip, read_lines(names))
    ]
    table = class_table(len(_VOC_CLASSES), ignore=255)
    return SegmentationSet(rows, name=f"VOC2012 {split}", classes=_VOC_CLASSES, table=table)


def _cityscapes(folder: Path, split: str, *, strict: bool) -> SegmentationSet:
    images = _strip_ending(split_files(folder / "leftImg8bit", split), "_leftImg8bit")
    masks = _strip_ending(split_files(folder / "gtFine", split), "_gtFine_labelIds")
    table = np.full(256, IGNORE, np.uint8)
    table[list(_CITYSCAPES_CLASSES)] = range(len(_CITYSCAPES_CLASSES))
    rows, left_out = pair(images, masks, folder, strict=strict)
    return SegmentationSet(
        rows,
        left_out=left_out,
        name=f"Cityscapes {split}",
        classes=tuple(_CITYSCAPES_CLASSES.values()),
        table=table,
    )


def _strip_ending(files: Files, ending: str) -> Files:
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
            columns=f"{columns.image} and {columns.mask}",
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
    columns: str
    """Names of both columns, for the fingerprint."""

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return f"{self.images.fingerprint()}, columns {self.columns}"

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
