"""Decodes an image, by one rule for every recipe: upright RGB of 8 bits a channel.

What is stored is shown as follows; what fits no row is refused by name (:class:`BrokenImageError`).

===========================  ======================================================================
``L``, ``RGB``               as they are; colour profiles (ICC) are not applied
``1``                        0 is black, 1 is white
``P``                        the colours of the palette
``RGBX``, ``HSV``,           converted by Pillow; CMYK without a profile
``YCbCr``, ``CMYK``
``LAB``                      converted to sRGB (D50)
``LA``, ``RGBA``, ``PA``,    laid on white, as is what a PNG or GIF declares transparent;
``La``, ``RGBa``             premultiplied alpha is divided out first
gray, unsigned 9 to 16 bits  by the depth of the file, whatever the image holds: 65535 (of 12 bits
(``I;16``, ``I``)            4095) is white
16-bit RGB, RGBA, LA         the upper 8 bits, as Pillow reads them: at most one level too dark
gray, 32 bits or signed,     by the range it keeps to: 0..1, 0..255 or 0..65535 is black..white (see
or float (``I``, ``F``)      ``gray.py``: pixels without a value are black, stray ones are cut)
several frames or pages      the first
EXIF orientation             applied
TIFF with more bands than    refused, as are signed 8-bit bands and inks other than CMYK (see
colours and declared alpha   ``bands.py``)
PostScript, FITS             not opened (PostScript would start an interpreter)
above 89 megapixels          refused, but for JPEG (179), which is decoded smaller
===========================  ======================================================================
"""

import functools
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from pcd_hub.data.bands import check_bands, described_tiff
from pcd_hub.data.gray import scaled_gray
from pcd_hub.errors import DataError, first_line

_MOST_PIXELS = 89_478_485
"""A quarter of a GiB at three bytes a pixel: where Pillow begins to warn of bombs."""
_STRETCH = {"2": 85, "4": 17}
"""What Pillow multiplies grays of 2 and 4 bits with."""

ResultT = TypeVar("ResultT")


class BrokenImageError(DataError):
    """One image that cannot be decoded; ``name`` says which."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)


def decode(
    encoded: Path | Mapping[str, Any] | None,
    name: str,
    to_image: Callable[[Image.Image], ResultT],
) -> ResultT:
    """Decode a file, or a cell of an undecoded Hugging Face image column.

    Args:
        encoded: Path of the file, or the cell; None is a cell that was left empty.
        name: How errors call it; unique in its source, since broken images are counted by it. A
            path that the cell states is shown behind it.
        to_image: As :func:`as_rgb` or :func:`as_mask`; given the opened image.

    Raises:
        BrokenImageError: If it cannot be decoded.
    """
    try:
        with _opened(encoded) as image:
            _refuse_bombs(image)
            check_bands(image)
            return to_image(image)
    except Exception as error:
        stated = encoded.get("path") if isinstance(encoded, Mapping) else None
        raise BrokenImageError(f"{name} ({stated!r})" if stated else name, reason(error)) from error


def reason(error: Exception) -> str:
    """Return type and first line of an error."""
    return f"{type(error).__name__}: {first_line(error)}"


def _opened(encoded: Path | Mapping[str, Any] | None) -> Image.Image:
    file = _file(encoded)
    try:
        return Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        if described := described_tiff(file):
            raise ValueError(described) from error
        raise UnidentifiedImageError("cannot identify image file") from error  # whose name we add


def _file(encoded: Path | Mapping[str, Any] | None) -> Path | io.BytesIO:
    if not isinstance(encoded, Path):
        if encoded and encoded["bytes"]:
            return io.BytesIO(encoded["bytes"])
        if not (encoded and encoded["path"]):
            raise ValueError("the row holds no image")
        encoded = Path(encoded["path"])
    if encoded.exists() and not encoded.is_file():  # a pipe would be waited for
        raise ValueError("it is no plain file")
    return encoded


@functools.cache
def _formats() -> list[str]:
    """All that Pillow knows, but for PostScript and FITS.

    To draw PostScript, it starts an interpreter; FITS holds signed integers, which it takes as
    unsigned.
    """
    Image.init()
    return [name for name in Image.ID if name not in {"EPS", "FITS"}]


def _refuse_bombs(image: Image.Image) -> None:
    """JPEGs may be twice as large, which Pillow checks: they are decoded smaller."""
    if image.width * image.height > _MOST_PIXELS and not is_jpeg(image):
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than {_MOST_PIXELS}; make it smaller"
        )


def as_rgb(image: Image.Image) -> Image.Image:
    """Decode to upright 8-bit RGB (the table at the top of this file).

    Raises:
        ValueError: If the image cannot be shown faithfully.
    """
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Image.fromarray(scaled_gray(image)).convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode in {"RGBa", "La"}:
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return _lab_as_srgb(image) if image.mode == "LAB" else image.convert("RGB")


def _lab_as_srgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    shown = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert shown is not None  # only with inPlace
    return shown


def as_mask(image: Image.Image) -> Image.Image:
    """Decode a map of class indices: the values as they are stored.

    Pillow stretches grays of 2 and 4 bits to 8, and inverts those whose white is zero; this is
    undone.

    Raises:
        ValueError: If the file does not keep indices: JPEG, or PGM with a maximum of its own.
    """
    if is_jpeg(image):
        raise ValueError("JPEG changes the values of a mask; save it as PNG")
    codec, raw_mode, top = _packing(image)
    if codec.startswith("ppm") and top != 255:
        raise ValueError(f"a PGM with the maximum {top} is stretched to 255; save it as PNG")
    stored = np.array(image)
    if image.mode != "L":
        return image.copy()
    how = raw_mode.partition(";")[2]
    if "I" in how:
        stored = 255 - stored
    return Image.fromarray(stored // _STRETCH.get(how[:1], 1))


def _packing(image: Image.Image) -> tuple[str, str, Any]:
    """How an opened image that is not loaded yet is packed: codec, raw mode, its last argument."""
    codec, _, _, packing = (getattr(image, "tile", None) or [("", None, 0, "")])[0]
    packing = packing if isinstance(packing, tuple) else (packing,)
    return codec, str(packing[0]), packing[-1]


def is_jpeg(image: Image.Image) -> bool:
    """Whether an opened image can be decoded smaller than it is."""
    return image.format in {"JPEG", "MPO"}


def upright_jpeg_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after EXIF rotation of an opened JPEG, which need not be decoded for it.

    Other formats differ in who turns them, Pillow when it opens them or :func:`as_rgb`.
    """
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in {5, 6, 7, 8}
    return (image.height, image.width) if turned else (image.width, image.height)


def shrink_jpeg(image: Image.Image, times: float) -> None:
    """Let an opened JPEG be decoded at 1/2, 1/4 or 1/8, at most ``times`` smaller.

    By leaving out frequencies, which takes less time as well as memory.
    """
    if times >= 2:
        image.draft(None, (math.ceil(image.width / times), math.ceil(image.height / times)))  # pyright: ignore[reportArgumentType]
