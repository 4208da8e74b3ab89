"""Embed the pictures of a run in a page, as data URIs."""

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pcd_hub.errors import first_line
from pcd_hub.files.read import read_bounded
from pcd_hub.report.run_report import RunReport, Sheet

_MAX_BYTES = 2**25
_MAX_PIXELS = 2**25
_MAX_WIDTH = 1200
_MAX_PARTS = 200


class Picture(NamedTuple):
    """An embedded picture."""

    uri: str
    """``data:`` URI."""
    alt: str
    width: int
    height: int
    caption: str = ""
    pixelated: bool = False
    """Whether it is enlarged without smoothing."""


class PictureRow(NamedTuple):
    """Pictures of one image, or the fields of several models."""

    label: str
    pictures: Sequence[Picture]


class PictureError(ValueError):
    """A picture cannot be embedded; the message has the reason."""


def embed(file: Path, *, alt: str) -> Picture:
    """Embed a PNG, at most ``_MAX_WIDTH`` pixels wide.

    Raises:
        PictureError: If it cannot be read.
    """
    image = _open(file)
    if image.width > _MAX_WIDTH:
        height = max(1, round(image.height * _MAX_WIDTH / image.width))
        image = image.resize((_MAX_WIDTH, height), Image.Resampling.LANCZOS)
    return Picture(_uri(image, "JPEG"), alt, image.width, image.height)


def feature_rows(report: RunReport) -> list[PictureRow]:
    """Cut the sheet of features: for each image, the image and each model's feature map.

    Raises:
        PictureError: If the picture cannot be read, or is not such a sheet.
    """
    sheet = report.features
    if sheet is None:
        return []
    parts = _cut(report.folder / sheet.path, sheet)
    return [
        PictureRow(
            label=name,
            pictures=[
                _feature(parts[row][column], sheet.rows[row], name, is_image=row == 0)
                for row in range(len(sheet.rows))
            ],
        )
        for column, name in enumerate(sheet.columns)
    ]


def receptive_field_row(report: RunReport) -> PictureRow | None:
    """Cut the sheet of receptive fields: one picture for each model.

    Raises:
        PictureError: If the picture cannot be read, or is not such a sheet.
    """
    sheet = report.receptive_field
    if sheet is None:
        return None
    (parts,) = _cut(report.folder / sheet.path, sheet)[:1]
    pictures = []
    for model, part in zip(sheet.columns, parts, strict=True):
        side = report.receptive_sides.get(model)
        half = "" if side is None else f": half of it in a square of {100 * side:.0f} % of the side"
        alt = f"Effective receptive field of {model}{half}"
        pictures.append(Picture(_uri(part, "PNG"), alt, part.width, part.height, f"{model}{half}"))
    return PictureRow("", pictures)


def _feature(part: Image.Image, row: str, name: str, *, is_image: bool) -> Picture:
    if is_image:
        return Picture(_uri(part, "JPEG"), f"Image {name}", part.width, part.height, row)
    alt = f"Feature map of {row} for {name}, as colours"
    small = _cells(part)
    return Picture(_uri(small, "PNG"), alt, part.width, part.height, row, pixelated=True)


def _cells(part: Image.Image) -> Image.Image:
    """Return a map of squares of one colour with one pixel for each, if it is one."""
    pixels = np.asarray(part)
    rows = [0, *(np.flatnonzero((pixels[1:] != pixels[:-1]).any((1, 2))) + 1).tolist()]
    columns = [0, *(np.flatnonzero((pixels[:, 1:] != pixels[:, :-1]).any((0, 2))) + 1).tolist()]
    even = all(
        max(sizes) - min(sizes) <= 1
        for sizes in (np.diff([*rows, part.height]), np.diff([*columns, part.width]))
    )
    return Image.fromarray(pixels[np.ix_(rows, columns)]) if even else part


def _cut(file: Path, sheet: Sheet) -> list[list[Image.Image]]:
    image, rows, columns = _open(file), len(sheet.rows), len(sheet.columns)
    if not 0 < rows * columns <= _MAX_PARTS or image.height % rows or image.width % columns:
        raise PictureError(f"{file.name} is no grid of {rows} x {columns} pictures")
    height, width = image.height // rows, image.width // columns
    return [
        [
            image.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
            for x in range(columns)
        ]
        for y in range(rows)
    ]


def _open(file: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(read_bounded(file, _MAX_BYTES)), formats=["PNG"])
            if image.width * image.height > _MAX_PIXELS:
                raise PictureError(f"it has {image.width} x {image.height} pixels")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise PictureError(f"{file.name} cannot be shown: {first_line(error)}") from error


def _uri(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    options = {"quality": 85} if kind == "JPEG" else {"optimize": True}
    image.save(file, kind, **options)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"
