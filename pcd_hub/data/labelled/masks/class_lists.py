"""Read which class each value or colour of a mask stands for.

======================  ==========================================================================
``classes.json``        ``{"classes": ["background", ...], "ignore_index": 255}``, or values by
                        name: ``{"classes": {"0": "background", "255": "crack"}}``
``labelmap.txt``        CVAT: ``NAME:RED,GREEN,BLUE::``; the masks are read by their colours
``class_names.txt``     LabelMe's ``labelme2voc``: one name a line, from value 0 on; 255 is ignored
``_classes.csv``        Roboflow: ``Pixel Value, Class``; 255 is ignored unless it is a class
======================  ==========================================================================
"""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pcd_hub.data.decoding import as_mask, decode
from pcd_hub.data.labelled.formats.found import read_label_file
from pcd_hub.data.labelled.segmentation_set import (
    IGNORE,
    MAX_CLASSES,
    MaskValueError,
    Table,
    class_table,
)
from pcd_hub.data.sources.files import decode_lines
from pcd_hub.data.sources.uris import is_file
from pcd_hub.errors import DataError

_VOC_BORDER = (224, 224, 192)
"""Colour of pixels without a label in Pascal VOC's palette."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class MaskClasses:
    """The classes of masks, and how they are stored."""

    file: Path
    names: tuple[str, ...]
    table: Table
    """Class by value."""
    colours: Mapping[Colour, int] | None = None
    """Value by colour, if the masks are coloured."""


def find_classes(*folders: Path) -> MaskClasses | None:
    """Read the first list of classes in the folders; None if there is none.

    Raises:
        DataError: If it is invalid.
    """
    for folder in folders:
        for name, read in _READERS.items():
            if is_file(file := folder / name):
                return read(file)
    return None


def read_classes_json(file: Path) -> MaskClasses:
    """Read ``classes.json``.

    Raises:
        DataError: If it is missing or invalid.
    """
    try:
        content = json.loads(file.read_bytes())  # UTF-8, UTF-16 or UTF-32
        classes, ignore = content["classes"], content.get("ignore_index")
        by_value = dict(enumerate(map(str, classes)))
        if isinstance(classes, dict):
            by_value = {int(value): str(name) for value, name in classes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}): expected "
            '{"classes": ["background", ...], "ignore_index": 255}'
        ) from error
    if ignore is not None and not (isinstance(ignore, int) and 0 <= ignore <= 255):
        raise DataError(
            f"{file}: ignore_index {ignore!r}: expected an integer from 0 to 255, or null"
        )
    if isinstance(classes, dict) and ignore in by_value:
        raise DataError(
            f"{file}: ignore_index {ignore} is the value of class '{by_value[ignore]}'; expected "
            "a value without class, or null"
        )
    return _numbered(file, by_value, ignore)


def _numbered(file: Path, by_value: Mapping[int, str], ignore: int | None) -> MaskClasses:
    if not 2 <= len(by_value) <= MAX_CLASSES:
        raise DataError(f"{file} lists {len(by_value)} classes: expected 2 to {MAX_CLASSES}")
    if invalid := [value for value in by_value if not 0 <= value <= 255]:
        raise DataError(f"{file}: value {invalid[0]}: expected mask values from 0 to 255")
    table = class_table(len(by_value), ignore=ignore, values=sorted(by_value))
    return MaskClasses(file=file, names=tuple(by_value[v] for v in sorted(by_value)), table=table)


def _read_class_names(file: Path) -> MaskClasses:
    names = [line.strip() for line in decode_lines(read_label_file(file), str(file))]
    return _numbered(file, dict(enumerate(names)), IGNORE)


def _read_classes_csv(file: Path) -> MaskClasses:
    lines = decode_lines(read_label_file(file), str(file))
    try:
        rows = list(csv.reader(lines))[1:]
        by_value = {int(value): name.strip() for value, name in rows}
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read ({error}): expected the columns Pixel Value and Class"
        ) from error
    return _numbered(file, by_value, None if IGNORE in by_value else IGNORE)


def _read_labelmap(file: Path) -> MaskClasses:
    lines = [line.strip() for line in decode_lines(read_label_file(file), str(file))]
    colours: dict[Colour, int] = {}
    names: list[str] = []
    for line in lines:
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        colour = _colour(rest.partition(":")[0])
        if not name or colour is None or colour in colours:
            raise DataError(
                f"{file} has the line {line[:60]!r}: expected NAME:RED,GREEN,BLUE:: with a colour "
                "of its own from 0 to 255"
            )
        colours[colour] = len(names)
        names.append(name)
    classes = _numbered(file, dict(enumerate(names)), IGNORE)
    with_border = {_VOC_BORDER: IGNORE} | colours
    return MaskClasses(file=file, names=classes.names, table=classes.table, colours=with_border)


def _colour(text: str) -> Colour | None:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        return None
    red, green, blue = map(int, parts)
    return (red, green, blue) if max(red, green, blue) <= 255 else None


_READERS: dict[str, Callable[[Path], MaskClasses]] = {
    "classes.json": read_classes_json,
    "labelmap.txt": _read_labelmap,
    "class_names.txt": _read_class_names,
    "_classes.csv": _read_classes_csv,
}


def read_mask(path: Path, colours: Mapping[Colour, int] | None) -> Image.Image:
    """Read a mask with its stored values, or the values of its colours.

    Raises:
        MaskValueError: If it has another colour.
        BrokenImageError: If it cannot be decoded.
    """
    if colours is None:
        return decode(path, str(path), as_mask)
    stored = np.asarray(decode(path, str(path), _as_colours), np.uint32)
    pixels = _packed(stored)
    known: dict[int, int] = {int(_packed(np.array(key))): each for key, each in colours.items()}
    keys = np.array(sorted(known), np.uint32)
    places = np.searchsorted(keys, pixels).clip(max=len(keys) - 1)
    unknown = keys[places] != pixels
    if unknown.any():
        red, green, blue = stored[unknown][0].tolist()
        raise MaskValueError(
            f"{path} has the colour {red},{green},{blue}: expected one of the {len(known)} that "
            "labelmap.txt lists; correct the mask, or add the colour"
        )
    return Image.fromarray(np.array([known[int(key)] for key in keys], np.uint8)[places])


def _as_colours(image: Image.Image) -> Image.Image:
    mask = image if image.mode == "1" else as_mask(image)  # which makes 0 and 1 of black and white
    return mask.convert("RGB")


def _packed(colours: Any) -> Any:
    """Return colours as 24-bit integers."""
    return (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]
