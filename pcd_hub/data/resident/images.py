"""Decoded images, one after the other in one buffer in the memory of a device."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from pcd_hub.data.decoding import indices_to_try, too_many_broken
from pcd_hub.data.multiband.image import BandImage


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """Place and size of every image of a buffer; index by index as in the source."""

    starts: Int64[np.ndarray, " n"]
    """First byte of each image in the buffer."""
    sizes: Int64[np.ndarray, "n 2"]
    """Width and height of each image as it is kept; 0 if it is broken."""
    full_sizes: Int64[np.ndarray, "n 2"]
    """Width and height of each image in its file, to which crops refer."""
    broken: dict[int, tuple[str, str]]
    """(name, reason) of the images that cannot be decoded, by index."""

    def readable(self, first_index: int) -> tuple[int, list[tuple[str, str]]]:
        """Return the image or the one that replaces it, and the broken ones that were tried.

        Raises:
            DataError: If all images that are tried are broken.
        """
        broken: list[tuple[str, str]] = []
        for index in indices_to_try(first_index, len(self.starts)):
            if index not in self.broken:
                return index, broken
            broken.append(self.broken[index])
        raise too_many_broken(broken)


@dataclass(frozen=True, kw_only=True)
class ResidentImages:
    """Images of 8 bits in the memory of a GPU or of the host."""

    pixels: UInt8[Tensor, " bytes"]
    """Each image as (height, width, bands), and room for one more row at the end."""
    table: ImageTable
    num_bands: int

    def __len__(self) -> int:
        return len(self.table.starts)

    @property
    def device(self) -> torch.device:
        """Device whose memory holds the images."""
        return self.pixels.device

    def image(self, index: int) -> Image.Image | BandImage:
        """Return an image, as the reader of files does; the buffer must be in host memory."""
        width, height = self.table.sizes[index].tolist()
        start = int(self.table.starts[index])
        flat = self.pixels[start : start + width * height * self.num_bands].numpy()
        array = flat.reshape(height, width, self.num_bands)
        return Image.fromarray(array) if self.num_bands == 3 else BandImage.from_array(array)
