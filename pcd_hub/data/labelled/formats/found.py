"""Labels of one split as a format's reader finds them, in pixels and with names of classes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcd_hub.data.decoding import BrokenImageError, as_rgb, decode, is_jpeg
from pcd_hub.data.labelled.coco_validation import MAX_PIXELS, MAX_SIDE
from pcd_hub.errors import DataError
from pcd_hub.files.read import read_bounded

MAX_LABEL_BYTES = 2**28
"""Largest file with the labels of many images, or with an embedded image."""
MAX_NAMES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundObject:
    """One annotated object."""

    label: str
    box: list[float]
    """Left, top, width, height in pixels."""
    segmentation: Any = None
    """Polygons or a run-length code, as in COCO; None for a box."""
    is_difficult: bool = False
    is_ignored: bool = False
    """A region to leave out, as COCO's crowds."""
    is_background: bool = False
    """A region of no object, which counts in masks alone."""
    place: str
    """File and line or number, for errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundImage:
    """An image and its objects, before their values are checked."""

    path: Path
    width: int
    height: int
    objects: tuple[FoundObject, ...] = ()


@dataclass(kw_only=True)
class FoundSplit:
    """The images of one split."""

    place: Path
    """File or folder of the labels."""
    images: list[FoundImage] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    """Names of the classes in their order; None if the format does not list them."""
    files: list[Path] = field(default_factory=list)
    """Files with labels."""
    unlabelled: list[Path] = field(default_factory=list)
    """Images without a label file."""
    unmatched: list[str] = field(default_factory=list)
    """Label files without an image."""
    faults: list[str] = field(default_factory=list)
    """Annotations that cannot be read, with file and line."""

    def add(
        self, image: Path, size: tuple[int, int], parsed: Iterable[tuple[str, FoundObject | str]]
    ) -> None:
        """Add an image of ``size``, width and height, with its objects.

        Args:
            image: File of the image.
            size: Its width and height.
            parsed: For each annotation its place, and the object or what is wrong with it.
        """
        objects = []
        for place, found in parsed:
            if isinstance(found, FoundObject):
                objects.append(found)
            else:
                self.faults.append(f"{place}: {found}")
        width, height = size
        self.images.append(
            FoundImage(path=image, width=width, height=height, objects=tuple(objects))
        )


def points_box(points: Sequence[Sequence[float]]) -> list[float]:
    """Return left, top, width and height of the smallest box around points; NaN if one is NaN."""
    if not all(math.isfinite(value) for point in points for value in point):
        return [math.nan] * 4
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def flat(points: Iterable[Sequence[float]]) -> list[float]:
    """Return a polygon's points as COCO's list of x0, y0, x1, y1 ..."""
    return [value for x, y in points for value in (x, y)]


def read_label_file(file: Path) -> bytes:
    """Read a file of labels.

    Raises:
        DataError: If it cannot be read or is too large.
    """
    try:
        return read_bounded(file, MAX_LABEL_BYTES)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror or error}); make it readable"
        ) from error
    except ValueError as error:
        raise DataError(f"{error}; split it, or save it without the images' data") from error


def upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as :func:`as_rgb` decodes it, from its header.

    Labels refer to the image after its EXIF rotation, in every format.

    Raises:
        DataError: If the file is no image, or too large.
    """
    try:
        width, height = decode(path, str(path), _upright_size)
    except BrokenImageError as error:
        raise DataError(
            f"{error.name} cannot be read ({error.reason}); repair or remove it"
        ) from error
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DataError(f"{path} has {width} x {height} pixels: expected at most {MAX_PIXELS}")
    return width, height


def _upright_size(image: Any) -> tuple[int, int]:
    turned = image.getexif().get(0x0112, 1) in {5, 6, 7, 8}
    if turned and not is_jpeg(image):  # depends on format and version: Pillow turns some itself
        return as_rgb(image).size
    return (image.height, image.width) if turned else image.size


def check_stated_size(
    path: Path, size: tuple[int, int], stated: tuple[Any, Any], labels: Path
) -> None:
    """Check the size that a label file states, if it states one.

    Raises:
        DataError: If the image has another size, so that its boxes do not fit.
    """
    if all(stated) and tuple(stated) != size:
        raise DataError(
            f"{path} has {size[0]} x {size[1]} pixels, {labels} says {stated[0]} x {stated[1]}; "
            "they must agree, or the boxes do not fit (rotated or resized after labelling?)"
        )
