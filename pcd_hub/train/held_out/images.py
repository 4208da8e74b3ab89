"""Read the held-out images: centre crops of the size of a training view."""

import dataclasses
import logging
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pcd_hub.data.decoding import (
    BrokenImageError,
    is_jpeg,
    shrink_jpeg,
    upright_jpeg_size,
)
from pcd_hub.data.multiband.image import decoded
from pcd_hub.data.reading import read_batches
from pcd_hub.data.sources.open import ImageSource
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

MAX_BYTES = 2**28
"""Memory for the crops; of very large crops, fewer are read."""
_CROP_FRACTION = 7 / 8  # as in ImageNet evaluation
_MIN_IMAGES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentreCrop:
    """The largest centred crop with the shape of a view, less a margin of 1/8, resized."""

    height: int
    width: int

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the crop of an image of ``size`` (w, h)."""
        scale = _CROP_FRACTION * min(size[0] / self.width, size[1] / self.height)
        sides = self.width * scale, self.height * scale
        left, top = ((length - side) / 2 for length, side in zip(size, sides, strict=True))
        return left, top, left + sides[0], top + sides[1]

    def __call__(self, opened: Image.Image) -> UInt8[Tensor, "bands height width"]:
        if is_jpeg(opened):
            left, _, right, _ = self.box(upright_jpeg_size(opened))
            shrink_jpeg(opened, (right - left) / self.width)
        image = decoded(opened)
        size = self.width, self.height
        crop = image.resize(size, Image.Resampling.BICUBIC, box=self.box(image.size))
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()


def read_crops(
    source: ImageSource, *, size: tuple[int, int], num_bands: int = 3, num_workers: int
) -> UInt8[Tensor, "n bands height width"]:
    """Read the centre crops of all images that can be read, at most ``MAX_BYTES``.

    Raises:
        DataError: If fewer than two images can be read.
    """
    height, width = size
    crop_bytes = num_bands * height * width
    count = min(len(source), max(_MIN_IMAGES, MAX_BYTES // crop_bytes))
    batches = read_batches(
        partial(_read, source, CentreCrop(height=height, width=width)),
        [list(range(start, min(start + 16, count))) for start in range(0, count, 16)],
        num_workers=num_workers,
        batch_bytes=16 * crop_bytes,
    )
    read = [image for batch in batches for image in batch]
    crops = [image for image in read if isinstance(image, Tensor)]
    broken = [image for image in read if isinstance(image, str)]
    if len(crops) < _MIN_IMAGES:
        raise DataError(
            f"{len(crops)} of {count} held-out images can be read ({broken[0]}): expected at least "
            f"{_MIN_IMAGES}; check the images, or set --data.held-out 0"
        )
    if broken:
        log.warning("%d of %d held-out images are broken (%s)", len(broken), count, broken[0])
    return torch.stack(crops)


def _read(source: ImageSource, crop: CentreCrop, row: int) -> Tensor | str:
    try:
        return source.read(row, crop)
    except BrokenImageError as error:
        return str(error)
