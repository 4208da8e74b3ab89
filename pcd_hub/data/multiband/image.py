"""An image of any number of bands, with the methods of a Pillow image that views need."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pcd_hub.data.decoding import as_rgb


def decoded(opened: "Image.Image | BandImage") -> Any:
    """Return an image of bands as it is, and any other as upright RGB."""
    return opened if isinstance(opened, BandImage) else as_rgb(opened)


@dataclass(frozen=True)
class BandImage:
    """Bands of 8 bits, each a Pillow image of mode ``L`` and of the same size.

    Pillow has no mode for more than four bands, and takes the fourth for transparency.
    """

    bands: tuple[Image.Image, ...]
    format: None = None
    """As of a Pillow image that was not read from a file."""

    @classmethod
    def from_array(cls, pixels: UInt8[np.ndarray, "height width bands"]) -> "BandImage":
        """Build an image from an array."""
        bands = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        return cls(tuple(map(Image.fromarray, bands)))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.bands[0].size

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.bands[0].width

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bands[0].height

    def resize(self, *args: Any, **kwargs: Any) -> "BandImage":
        """Resize every band; the arguments are Pillow's."""
        return BandImage(tuple(band.resize(*args, **kwargs) for band in self.bands))

    def transpose(self, method: Image.Transpose) -> "BandImage":
        """Mirror or rotate every band."""
        return BandImage(tuple(band.transpose(method) for band in self.bands))

    def visible(self) -> Image.Image:
        """Return the first three bands as an RGB image, or the first alone."""
        shown = self.bands[:3] if len(self.bands) >= 3 else self.bands[:1] * 3
        return Image.merge("RGB", shown)

    def tobytes(self) -> bytes:
        """Return the values of all bands, one band after the other."""
        return b"".join(band.tobytes() for band in self.bands)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001 - NumPy's signature
        del copy  # stacking copies
        pixels = np.stack([np.asarray(band) for band in self.bands], axis=-1)
        return pixels if dtype is None else pixels.astype(dtype)
