"""Read files of named bands, and scale their values to 8 bits by one range for the whole data set.

==========================  =======================================================================
TIFF                        by ``tifffile``: any number of bands, interleaved or planar, of 8 or 16
                            bits (unsigned), or float
``.npy``                    an array (height, width, bands), or (height, width) for one band
PNG, WebP, BMP ...          by Pillow: 1, 3 or 4 bands of 8 bits (RGBA as four bands), or one of 16
one band named ``gray``     any image that can be read without ``--data.bands``, converted to gray
==========================  =======================================================================

The range is ``--data.band-range LOW HIGH``; without it, that of the type: 0 to 255 or 0 to 65535.
It is never that of a single image, which would remove the brightness of a measured band.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

from pcd_hub.data.decoding import MAX_PIXELS, as_rgb, open_image
from pcd_hub.data.multiband.image import BandImage
from pcd_hub.data.multiband.names import GRAY
from pcd_hub.errors import DataError, pip_install

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NODATA = 42113
"""GDAL's tag of the value that stands for no data."""
_NUMPY = b"\x93NUMPY"
_TYPE_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
_PILLOW_MODES = {"L", "RGB", "RGBA", "I;16", "I;16B", "I;16L"}

Values = Shaped[np.ndarray, "height width bands"]


@dataclass(frozen=True)
class BandReader:
    """Reader of image files with named bands."""

    bands: tuple[str, ...]
    """Names of the bands, in the order of the files."""
    value_range: tuple[float, float] | None = None
    """Values that become 0 and 255; None for the range of the type."""

    def read(self, file: Path | io.BytesIO) -> BandImage:
        """Read a file.

        Raises:
            DataError: If its values need a range, or ``tifffile`` is not installed.
            ValueError: If it is no such file, or has another number of bands.
        """
        if self.is_gray:
            with open_image(file) as image:
                return BandImage((as_rgb(image).convert("L"),))
        return BandImage.from_array(self.scale(self.read_values(file)))

    @property
    def is_gray(self) -> bool:
        """Return True for gray images that are read as RGB images are."""
        return self.bands == GRAY and self.value_range is None

    def read_values(self, file: Path | io.BytesIO) -> Values:
        """Read the values as they are stored.

        Raises:
            DataError: If ``tifffile`` is not installed.
            ValueError: If it is no such file, or has another number of bands.
        """
        start = _first_bytes(file)
        if start.startswith(_NUMPY):
            values = _read_numpy(file)
        elif start.startswith(_TIFF):
            values = _read_tiff(file, len(self.bands))
        else:
            values = _read_pillow(file)
        values = values[..., None] if values.ndim == 2 else values
        if values.dtype.kind == "c":
            raise ValueError("complex values: expected real ones, such as their absolute values")
        if values.dtype.kind == "f" and values.size and not np.isfinite(values).any():
            raise ValueError("no value is finite; remove the image")
        if not values.size or values.ndim != 3 or values.shape[2] != len(self.bands):
            raise ValueError(
                f"an array of {' x '.join(map(str, values.shape))}: expected height x width x "
                f"{len(self.bands)}, the number of --data.bands {' '.join(self.bands)}"
            )
        return values

    def scale(self, values: Values) -> UInt8[np.ndarray, "height width bands"]:
        """Scale values to 0..255; NaN, infinity and nodata become 0.

        Raises:
            DataError: If the type has no range of its own and none is configured.
        """
        low, high = self.range_of(values)
        if (low, high) == (0, 255) and values.dtype == np.uint8:
            return values
        scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        scaled[~np.isfinite(scaled)] = 0
        return np.rint(scaled).clip(0, 255).astype(np.uint8)

    def range_of(self, values: Values) -> tuple[float, float]:
        """Return the values that become 0 and 255."""
        if found := self.value_range or _TYPE_RANGES.get(values.dtype.name):
            return found
        raise DataError(
            f"the images have values of type {values.dtype.name}, from {np.nanmin(values):g} to "
            f"{np.nanmax(values):g} in one of them; set --data.band-range LOW HIGH, for the whole "
            "data set"
        )


def _first_bytes(file: Path | io.BytesIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(8)
    return file.getbuffer()[:8].tobytes()


def _read_numpy(file: Path | io.BytesIO) -> np.ndarray:
    loaded: Any = np.load(file, mmap_mode="r" if isinstance(file, Path) else None)
    _check_pixels(loaded.shape)
    return np.asarray(loaded)


def _read_tiff(file: Path | io.BytesIO, num_bands: int) -> np.ndarray:
    try:
        import tifffile  # pyright: ignore[reportMissingImports] - the extra `bands`
    except ImportError as error:
        raise DataError(
            "the library `tifffile`, which reads TIFF files of several bands, is not installed; "
            + pip_install("bands")
        ) from error
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        _check_pixels(series.shape)
        values = _without_nodata(series.asarray(), tiff.pages.first.tags.get(_NODATA))
    is_planar = values.ndim == 3 and values.shape[0] == num_bands != values.shape[2]
    return np.moveaxis(values, 0, -1) if is_planar else values


def _without_nodata(values: np.ndarray, tag: Any) -> np.ndarray:
    """Return the values with NaN, or 0 if they are unsigned integers, where the tag says nodata."""
    try:
        nodata = float(tag.value)
    except (AttributeError, TypeError, ValueError):  # no tag, or none that GDAL writes
        return values
    is_nodata = values == nodata
    if not is_nodata.any():
        return values
    if values.dtype.kind == "u":
        return np.where(is_nodata, 0, values).astype(values.dtype)
    return np.where(is_nodata, np.nan, values)


def _read_pillow(file: Path | io.BytesIO) -> np.ndarray:
    with open_image(file) as image:
        if image.mode not in _PILLOW_MODES:
            raise ValueError(f"an image of mode {image.mode}: expected 1, 3 or 4 plain bands")
        upright = ImageOps.exif_transpose(image)
        return np.array(upright)


def _check_pixels(shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape, dtype=np.float64))
    if count > 3 * MAX_PIXELS:
        raise ValueError(f"{count} values: expected at most {3 * MAX_PIXELS}; cut it into tiles")


@dataclass(frozen=True)
class FromFile:
    """A ``to_image`` for sources that opens the file with a :class:`BandReader`."""

    reader: BandReader
    to_image: Callable[[Any], Any]

    def from_file(self, file: Path | io.BytesIO) -> Any:
        """Read the file and apply ``to_image`` to the image."""
        return self.to_image(self.reader.read(file))

    def __call__(self, opened: Image.Image) -> Any:
        """Apply ``to_image`` to an image that exists in memory only, such as a generated scene."""
        raise DataError(
            f"a generated or decoded {opened.mode} image has no bands "
            f"{' '.join(self.reader.bands)}; use files"
        )
