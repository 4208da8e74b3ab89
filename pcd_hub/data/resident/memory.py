"""The size at which images are kept, and the memory that they need."""

import math
import os
from typing import Any

import numpy as np
import torch

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.data.workers import read_count
from pcd_hub.host_memory import available_host_memory
from pcd_hub.image_size import ImageSize, height_width

SAMPLE = 256
"""Number of images whose sizes are read to estimate the memory of all."""


_SMALLER_CROPS = 1 / 8
"""Share of the random crops that are smaller than their view. On photographs three times as large
as their views, the mean contrast of neighbouring pixels (root mean square of the Laplacian) is 95 %
of the loader's; with a half instead of an eighth it is 76 %, in half the memory."""


def side_for_views(image_size: ImageSize, crop_area: tuple[float, float]) -> int:
    """Return the shorter side at which most random crops are at least as large as their view.

    It holds for square images; the same side leaves more pixels to the crops of oblong ones.

    Args:
        image_size: Size of the views.
        crop_area: Smallest and largest crop, as a share of the image's area.
    """
    smallest, largest = crop_area
    share = smallest + _SMALLER_CROPS * (largest - smallest)
    return math.ceil(math.sqrt(math.prod(height_width(image_size)) / share))


def kept_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return width and height of an image whose shorter side is at most ``side``."""
    scale = min(1.0, side / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def estimate_bytes(source: ImageSource, side: int, num_bands: int) -> int:
    """Estimate the memory of all images from the sizes of some, which are not decoded.

    Args:
        source: The images.
        side: Their shorter side in memory.
        num_bands: Bands of an image.
    """
    count = min(SAMPLE, len(source))
    chosen = np.random.default_rng(0).choice(len(source), count, replace=False)
    sizes = [size for index in chosen.tolist() if (size := _size(source, index))]
    if not sizes:
        return 0
    areas = [math.prod(kept_size(size, side)) for size in sizes]
    return round(len(source) * num_bands * sum(areas) / len(areas))


def _size(source: ImageSource, index: int) -> tuple[int, int] | None:
    """Return width and height, before a rotation by EXIF; None if the image is broken."""

    def size(opened: Any) -> tuple[int, int]:
        return opened.size

    try:
        return source.read(index, size)
    except BrokenImageError:
        return None


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory for one process; None if it is unknown.

    The processes of one machine share the host's memory; each has a GPU of its own.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = available_host_memory()
    return available and available // read_count(os.environ, "LOCAL_WORLD_SIZE")
