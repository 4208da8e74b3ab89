"""Decode images to upright RGB with 8 bits per channel, the same way for every command.

An image that matches no row of this table raises :class:`BrokenImageError`.

===========================  ======================================================================
``L``, ``RGB``               unchanged; colour profiles (ICC) are not applied
``1``                        0 is black, 1 is white
``P``                        the colours of the palette
``RGBX``, ``HSV``,           converted by Pillow; CMYK without a profile
``YCbCr``, ``CMYK``
``LAB``                      converted to sRGB (D50)
``LA``, ``RGBA``, ``PA``,    composited on white, also the transparent colour of a PNG or GIF;
``La``, ``RGBa``             premultiplied alpha is divided out first
gray, unsigned 9 to 16 bits  scaled by the bit depth of the file: 65535 (4095 for 12 bits) is white
(``I;16``, ``I``)
16-bit RGB, RGBA, LA         the upper 8 bits, as Pillow reads them: at most one level too dark
gray, 32 bits or signed,     scaled from 0..1, 0..255 or 0..65535 by the range of its values (see
or float (``I``, ``F``)      ``gray.py``: pixels without a value are black, outliers are clipped)
several frames or pages      the first
EXIF orientation             applied
TIFF with extra bands        rejected, as are signed 8-bit bands and inks other than CMYK (see
                             ``bands.py``)
PostScript, FITS             not opened (PostScript would start an interpreter)
above 89 megapixels          rejected, except JPEG (up to 179), which is decoded at a smaller size
===========================  ======================================================================
"""

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from pcd_hub.data.bands import check_bands, describe_unreadable_tiff
from pcd_hub.data.gray import scale_gray
from pcd_hub.errors import DataError, first_line

MAX_PIXELS = 89_478_485
"""A quarter of a GiB at three bytes per pixel, from where Pillow warns of decompression bombs."""
_GRAY_FACTORS = {"2": 85, "4": 17}
"""Factors by which Pillow scales grays of 2 and 4 bits."""

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


@runtime_checkable
class FileReader(Protocol[ResultT_co]):
    """A ``to_image`` that opens the file itself, instead of Pillow."""

    def from_file(self, file: Path | io.BytesIO) -> ResultT_co:
        """Open and convert the file; an error that concerns all files is a DataError."""
        ...

    def __call__(self, opened: Image.Image, /) -> ResultT_co: ...


MAX_TRIED = 32
"""Most images that are tried until one can be decoded."""


class BrokenImageError(DataError):
    """An image that cannot be decoded.

    Args:
        name: Name of the image.
        reason: Why it cannot be decoded.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)


def indices_to_try(first: int, count: int) -> Iterator[int]:
    """Yield the index of an image, then those of images that replace it if it is broken.

    They are spread over all ``count`` images, because broken ones often lie next to each other.
    """
    step = max(1, count // MAX_TRIED)
    return ((first + number * step) % count for number in range(min(MAX_TRIED, count)))


def too_many_broken(broken: Sequence[tuple[str, str]]) -> DataError:
    """Return the error if all images that were tried are broken, given as (name, reason)."""
    name, reason = broken[0]
    return DataError(
        f"none of {len(broken)} images that were tried can be decoded, the first is {name} "
        f"({reason}); check the images"
    )


def decode(
    encoded: Path | Mapping[str, Any] | None,
    name: str,
    to_image: Callable[[Image.Image], ResultT],
) -> ResultT:
    """Decode a file, or a cell of an undecoded Hugging Face image column.

    Args:
        encoded: Path of the file, or the cell; None for an empty cell.
        name: Name in errors, unique in its source, since broken images are counted by name. Errors
            append the path that the cell holds.
        to_image: Converts the opened image, such as :func:`as_rgb` or :func:`as_mask`.

    Raises:
        BrokenImageError: If it cannot be decoded.
        DataError: If a :class:`FileReader` can read none of the files.
    """
    opens_files = isinstance(to_image, FileReader)
    try:
        file = _file_of(encoded)
        if opens_files:
            return to_image.from_file(file)
        with open_image(file) as image:
            return to_image(image)
    except Exception as error:
        if opens_files and isinstance(error, DataError):
            raise
        path = encoded.get("path") if isinstance(encoded, Mapping) else None
        full_name = f"{name} ({path!r})" if path else name
        raise BrokenImageError(full_name, describe_error(error)) from error


def describe_error(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error)}"


def open_image(file: Path | io.BytesIO) -> Image.Image:
    """Open an image without decoding it, and check its size and bands.

    Raises:
        ValueError: If it is too large, or has bands that would be dropped or misread.
        UnidentifiedImageError: If it is no image.
    """
    image = _open(file)
    try:
        _check_size(image)
        check_bands(image)
    except ValueError:
        image.close()
        raise
    return image


def _open(file: Path | io.BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        if description := describe_unreadable_tiff(file):
            raise ValueError(description) from error
        raise UnidentifiedImageError("cannot identify image file") from error  # name: see decode


def _file_of(encoded: Path | Mapping[str, Any] | None) -> Path | io.BytesIO:
    if not isinstance(encoded, Path):
        if encoded and encoded["bytes"]:
            return io.BytesIO(encoded["bytes"])
        if not (encoded and encoded["path"]):
            raise ValueError("the row has no image")
        if "://" in encoded["path"]:  # of datasets: a file in an archive, or behind a URL
            return _fetch(encoded["path"])
        encoded = Path(encoded["path"])
    if encoded.exists() and not encoded.is_file():  # opening a pipe would block
        raise ValueError("not a regular file")
    return encoded


def _fetch(url: str) -> io.BytesIO:
    import fsspec

    with fsspec.open(url, "rb") as file:
        return io.BytesIO(file.read())  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _formats() -> list[str]:
    """Return all formats of Pillow except PostScript and FITS.

    Pillow starts an interpreter for PostScript, and reads the signed integers of FITS as unsigned.
    HEIC is among them if pillow-heif is installed.
    """
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
    return [name for name in Image.ID if name not in {"EPS", "FITS"}]


def _check_size(image: Image.Image) -> None:
    """Reject decompression bombs; Pillow checks JPEGs, which are decoded at a smaller size."""
    if image.width * image.height > MAX_PIXELS and not is_jpeg(image):
        raise ValueError(
            f"{image.width} x {image.height} pixels: expected at most {MAX_PIXELS}; resize it"
        )


def as_rgb(image: Image.Image) -> Image.Image:
    """Decode to upright 8-bit RGB by the table at the top of this file.

    Raises:
        ValueError: If the range of the values is unknown.
    """
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Image.fromarray(scale_gray(image)).convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode in {"RGBa", "La"}:
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return _lab_to_srgb(image) if image.mode == "LAB" else image.convert("RGB")


def _lab_to_srgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # it is None only with inPlace
    return converted


def as_mask(image: Image.Image) -> Image.Image:
    """Decode a mask of class indices to the stored values; those of one bit are 0 and 1.

    Pillow scales grays of 2 and 4 bits to 8, and inverts those whose white is zero; this is undone.

    Raises:
        ValueError: If the format does not preserve indices: JPEG, or PGM with another maximum.
    """
    if is_jpeg(image):
        raise ValueError("the mask is a JPEG, which changes its values; save it as PNG")
    codec, raw_mode, maximum = _packing(image)
    if codec.startswith("ppm") and maximum != 255:
        raise ValueError(f"a PGM mask with maximum {maximum}: expected 255; save it as PNG")
    stored = np.array(image)
    if image.mode not in {"L", "1"}:
        return image.copy()
    transform = raw_mode.partition(";")[2]
    if image.mode == "1":
        return Image.fromarray((stored ^ ("I" in transform)).astype(np.uint8))
    if "I" in transform:
        stored = 255 - stored
    return Image.fromarray(stored // _GRAY_FACTORS.get(transform[:1], 1))


def _packing(image: Image.Image) -> tuple[str, str, Any]:
    """Return codec, raw mode and last codec argument of an opened image that is not loaded yet."""
    codec, _, _, packing = (getattr(image, "tile", None) or [("", None, 0, "")])[0]
    packing = packing if isinstance(packing, tuple) else (packing,)
    return codec, str(packing[0]), packing[-1]


def is_jpeg(image: Any) -> bool:
    """Check whether an opened image, of any kind, is a JPEG, which can be decoded smaller."""
    return image.format in {"JPEG", "MPO"}


def upright_jpeg_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened JPEG after EXIF rotation, without decoding it.

    Other formats are rotated either by Pillow when it opens them or by :func:`as_rgb`.
    """
    rotated = image.getexif().get(ExifTags.Base.Orientation, 1) in {5, 6, 7, 8}
    return (image.height, image.width) if rotated else (image.width, image.height)


def shrink_jpeg(image: Image.Image, factor: float) -> None:
    """Set an opened JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, at most ``factor`` smaller.

    The decoder skips frequencies, which saves time and memory.
    """
    if factor >= 2:
        image.draft(None, (math.ceil(image.width / factor), math.ceil(image.height / factor)))  # pyright: ignore[reportArgumentType]
