"""Images with a class for every pixel."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pcd_hub.data.fingerprint import names_digest, sizes_digest
from pcd_hub.errors import DataError

IGNORE = 255
"""The class of a pixel without a label."""

MAX_CLASSES = 254
_UNKNOWN = 254  # of the table: a value that names no class

Table = UInt8[np.ndarray, " 256"]
Mask = UInt8[np.ndarray, "height width"]
Opener = Callable[[], Image.Image]


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """Where one image and its mask come from."""

    name: str
    image: Opener
    """RGB, upright."""
    mask_name: str
    mask: Opener
    """As stored."""


@runtime_checkable
class Rows(Protocol):
    """As a list of :class:`LabelledImage`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledImage: ...


@runtime_checkable
class Fingerprinted(Protocol):
    """Rows that are no files know by themselves when they change."""

    def fingerprint(self) -> str:
        """A short text that changes when the rows do."""
        ...


class SegmentationSet:
    """One split of a data set: images, and the class of every pixel.

    Args:
        rows: Images and masks.
        name: How results and errors call it.
        classes: Names, by class.
        table: Class of every value that a mask may hold; ``IGNORE`` for those without a label.
    """

    def __init__(self, rows: Rows, *, name: str, classes: Sequence[str], table: Table) -> None:
        self._rows = rows
        self._table = table
        self.name = name
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> str:
        """A short text that changes when the set of images and masks does, or its classes."""
        if isinstance(self._rows, Fingerprinted):
            rows = self._rows.fingerprint()
        else:
            found = [self._rows[index] for index in range(len(self))]
            names = [name for row in found for name in (row.name, row.mask_name)]
            root = os.path.commonpath(names)
            paths = names_digest(os.path.relpath(name, root) for name in names)
            sizes = sizes_digest(len(names), names.__getitem__)
            rows = f"{len(found)} images, paths sha256 {paths}, sizes sha256 {sizes}"
        return f"{rows}, classes sha256 {names_digest([*self.classes, *map(str, self._table)])}"

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as upright RGB.

        Raises:
            BrokenImageError: If it cannot be decoded.
        """
        return self._rows[index].image()

    def mask(self, index: int) -> Mask:
        """The class of every pixel of image ``index``.

        Raises:
            DataError: If the mask cannot be decoded, is no map of indices, or holds a value that
                names no class.
        """
        row = self._rows[index]
        values = np.asarray(stored := row.mask())
        if values.ndim != 2 or stored.mode not in {"L", "P", "I", "I;16"}:
            raise DataError(
                f"{row.mask_name} is an image of mode {stored.mode}; a mask is a PNG of one "
                "channel or palette whose values are classes"
            )
        outside = values[(values < 0) | (values > 255)]
        known = outside.size == 0 and not (self._table[values] == _UNKNOWN).any()
        if not known:
            found = outside if outside.size else values[self._table[values] == _UNKNOWN]
            raise DataError(
                f"{row.mask_name} holds the value {int(found.flat[0])}, and there are "
                f"{len(self.classes)} classes; mend it, or name the value as what to ignore"
            )
        return self._table[values]

    def pair(self, index: int) -> tuple[Image.Image, Mask]:
        """Image and mask.

        Raises:
            DataError: As :meth:`image` and :meth:`mask`, or if they differ in size.
        """
        image, mask = self.image(index), self.mask(index)
        if image.size != mask.shape[::-1]:
            row = self._rows[index]
            raise DataError(
                f"{row.name} has {image.width} x {image.height} pixels, its mask {row.mask_name} "
                f"{mask.shape[1]} x {mask.shape[0]}; they must agree"
            )
        return image, mask


def class_table(num_classes: int, *, ignore: int | None, reduce_zero_label: bool = False) -> Table:
    """Class of every value of a mask, for :class:`SegmentationSet`."""
    table = np.full(256, _UNKNOWN, np.uint8)
    first = 1 if reduce_zero_label else 0
    table[first : first + num_classes] = range(num_classes)
    if reduce_zero_label:
        table[0] = IGNORE
    if ignore is not None:
        table[ignore] = IGNORE
    return table
