"""Semantic segmentation data set: images with a class for every pixel."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pcd_hub.data.sources.files import hash_names, hash_sizes
from pcd_hub.errors import DataError

IGNORE = 255
"""Class index of a pixel without a label."""

MAX_CLASSES = 254
_INVALID = 254  # entry of the class table for a mask value without a class

Table = UInt8[np.ndarray, " 256"]
Mask = UInt8[np.ndarray, "height width"]
LoadImage = Callable[[], Image.Image]


class MaskValueError(DataError):
    """A mask with a value that is no class."""


class MaskSizeError(DataError):
    """A mask of another size than its image."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a data set's files have beside its images with labels."""

    unlabelled: tuple[str, ...] = ()
    """Images without labels."""
    unmatched: tuple[str, ...] = ()
    """Masks or label files without an image."""
    dropped: tuple[str, ...] = ()
    """Invalid annotations that were left out."""


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """Names and loaders of an image and its mask."""

    name: str
    image: LoadImage
    """Loads the image as upright RGB."""
    mask_name: str
    mask: LoadImage
    """Loads the mask with its stored values."""
    path: Path | None = None
    """File of the image; None if it is in a table."""
    mask_size: Callable[[], tuple[int, int]] | None = None
    """Finds width and height of the mask without decoding it, if the image is a file."""


@runtime_checkable
class Rows(Protocol):
    """A sequence of :class:`LabelledImage`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledImage: ...


@runtime_checkable
class HasFingerprint(Protocol):
    """Rows with their own fingerprint, because they are not files."""

    def fingerprint(self) -> str:
        """Return a short text that changes when the rows change."""
        ...


@runtime_checkable
class HasObjects(Protocol):
    """Rows whose masks are drawn from objects, so that they can be counted without drawing."""

    def num_images_by_class(self, classes: Sequence[str]) -> dict[str, int]:
        """Count for each class the images with an object of it."""
        ...

    def num_empty(self) -> int:
        """Count the images without objects."""
        ...


class SegmentationSet:
    """One split of a semantic segmentation data set.

    Args:
        rows: Images and masks.
        name: Name of the data set and split in results and errors.
        classes: Name of every class.
        table: Class for every mask value (see :func:`class_table`).
        left_out: What else the data set's files have.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        name: str,
        classes: Sequence[str],
        table: Table,
        left_out: LeftOut | None = None,
    ) -> None:
        self.rows = rows
        self._table = table
        self.name = name
        self.classes = tuple(classes)
        self.left_out = left_out or LeftOut()

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """Return a short text that changes when images, masks or classes change."""
        classes = hash_names([*self.classes, *map(str, self._table)])
        return f"{_fingerprint(self.rows)}, classes sha256 {classes}"

    def take(self, rows: Sequence[int], *, name: str) -> "SegmentationSet":
        """Return the set of some of the images, in this order."""
        own = _SomeRows(self.rows, tuple(rows))
        return SegmentationSet(own, name=name, classes=self.classes, table=self._table)

    def image_name(self, index: int) -> str:
        """Return the name of image ``index``, which is its path if it is a file."""
        return self.rows[index].name

    def image(self, index: int) -> Image.Image:
        """Load image ``index`` as upright RGB.

        Raises:
            BrokenImageError: If it cannot be decoded.
        """
        return self.rows[index].image()

    def mask(self, index: int) -> Mask:
        """Load the class of every pixel of image ``index``.

        Raises:
            MaskValueError: If it has a value without a class.
            DataError: If it cannot be decoded, or has no class indices.
        """
        row = self.rows[index]
        values = np.asarray(stored := row.mask())
        if values.ndim != 2 or stored.mode not in {"L", "P", "I", "I;16"}:
            raise DataError(
                f"{row.mask_name} is an image of mode {stored.mode}: expected a mask of class "
                "indices, a PNG with one channel or a palette"
            )
        invalid = values[(values < 0) | (values > 255)]
        if not invalid.size:
            invalid = values[self._table[values] == _INVALID]
        if invalid.size:
            raise MaskValueError(
                f"{row.mask_name} has the value {int(invalid.flat[0])}: expected one of "
                f"{len(self.classes)} classes; correct the mask, or set the value to ignore"
            )
        return self._table[values]

    def check_labelled(self, *, least: int, read_all: bool = False, remedy: str = "") -> None:
        """Check that the masks have ``least`` classes.

        Args:
            least: Fewest classes.
            read_all: Read all masks; otherwise only as many as it takes.
            remedy: Another remedy, for the error message.

        Raises:
            DataError: If they have fewer, or a mask that is read is invalid.
        """
        found: set[int] = set()
        for index in range(len(self)):
            found |= {*np.unique(self.mask(index)).tolist()} - {IGNORE}
            if len(found) >= least and not read_all:
                return
        if len(found) < least:
            raise DataError(
                f"the masks of {self.name} have {len(found)} of {len(self.classes)} classes, "
                f"expected at least {least}; check their values and which one classes.json ignores"
                f"{remedy}"
            )

    def pair(self, index: int) -> tuple[Image.Image, Mask]:
        """Load image and mask.

        Raises:
            MaskSizeError: If they differ in size.
            DataError: If one of them cannot be loaded.
        """
        image, mask = self.image(index), self.mask(index)
        self.check_size(index, image.size, (mask.shape[1], mask.shape[0]))
        return image, mask

    def check_size(self, index: int, size: tuple[int, int], mask_size: tuple[int, int]) -> None:
        """Check that an image and its mask have the same width and height.

        Raises:
            MaskSizeError: If they differ.
        """
        if size != mask_size:
            row = self.rows[index]
            raise MaskSizeError(
                f"{row.name} has {size[0]} x {size[1]} pixels, its mask {row.mask_name} "
                f"{mask_size[0]} x {mask_size[1]}; they must agree"
            )


@dataclass(frozen=True)
class _SomeRows:
    """Some rows of a set."""

    whole: Rows
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.whole[self.rows[index]]

    def fingerprint(self) -> str:
        rows = hash_names(map(str, self.rows))
        return f"{len(self)} of {_fingerprint(self.whole)}, rows sha256 {rows}"


def _fingerprint(rows: Rows) -> str:
    if isinstance(rows, HasFingerprint):
        return rows.fingerprint()
    images = [rows[index] for index in range(len(rows))]
    names = [name for image in images for name in (image.name, image.mask_name)]
    root = os.path.commonpath(names)
    paths = hash_names(os.path.relpath(name, root) for name in names)
    sizes = hash_sizes(len(names), names.__getitem__)
    return f"{len(images)} images, paths sha256 {paths}, sizes sha256 {sizes}"


def class_table(
    num_classes: int,
    *,
    ignore: int | None,
    reduce_zero_label: bool = False,
    values: Sequence[int] | None = None,
) -> Table:
    """Build the class for every mask value: a class index, ``IGNORE``, or invalid.

    Args:
        num_classes: Number of classes.
        ignore: Value of a pixel without a label.
        reduce_zero_label: Value 0 means no label, and class ``c`` is stored as ``c + 1``.
        values: Value of each class, if they are not consecutive.
    """
    table = np.full(256, _INVALID, np.uint8)
    first = 1 if reduce_zero_label else 0
    table[list(values or range(first, first + num_classes))] = range(num_classes)
    if reduce_zero_label:
        table[0] = IGNORE
    if ignore is not None:
        table[ignore] = IGNORE
    return table
