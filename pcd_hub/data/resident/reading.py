"""Decode every image of a source once, in worker processes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pcd_hub.data.decoding import (
    BrokenImageError,
    as_rgb,
    is_jpeg,
    shrink_jpeg,
    upright_jpeg_size,
)
from pcd_hub.data.multiband.image import BandImage, decoded
from pcd_hub.data.progress import Progress, silent
from pcd_hub.data.resident.images import ImageTable, ResidentImages
from pcd_hub.data.resident.memory import estimate_bytes, kept_size
from pcd_hub.data.shared_memory import fit_workers
from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.data.workers import load_batches

_IMAGES_AT_ONCE = 32
_MARGIN, _GROWTH = 1.05, 1.25


def read_images(
    source: ImageSource,
    *,
    side: int,
    num_bands: int,
    device: torch.device,
    num_workers: int,
    expected_bytes: int | None = None,
    progress: Progress = silent,
) -> ResidentImages:
    """Decode all images and keep them on ``device``; a broken one is noted and left out.

    Args:
        source: The images.
        side: Length to which a longer shorter side is reduced.
        num_bands: Bands of an image.
        device: Device whose memory holds the images.
        num_workers: Processes that decode; 0 for none.
        expected_bytes: What ``estimate_bytes`` returns; estimated if not given.
        progress: Shows the progress; silent if not given.
    """
    if expected_bytes is None:
        expected_bytes = estimate_bytes(source, side, num_bands)
    buffer = _Buffer(int(_MARGIN * expected_bytes), device)
    sizes, full_sizes, broken = [], [], {}
    parts = _read(source, side, num_workers, expected_bytes)
    count = math.ceil(len(source) / _IMAGES_AT_ONCE)
    for part in progress(parts, f"reading images, {_IMAGES_AT_ONCE} at a time", total=count):
        buffer.add(part.pixels)
        broken |= {len(sizes) + place: named for place, named in part.broken.items()}
        sizes += part.sizes
        full_sizes += part.full_sizes
    kept = np.array(sizes, np.int64)
    lengths = kept.prod(1) * num_bands
    return ResidentImages(
        # Windows that are read at once may extend beyond the last row of the last image.
        pixels=buffer.end(room=int(kept[:, 0].max()) * num_bands),
        table=ImageTable(
            starts=np.cumsum(lengths) - lengths,
            sizes=kept,
            full_sizes=np.array(full_sizes, np.int64),
            broken=broken,
        ),
        num_bands=num_bands,
    )


@dataclass(frozen=True)
class _Keep:
    """Decode an opened image to its size in memory; also return its size in the file."""

    side: int

    def __call__(self, opened: Any) -> tuple[Image.Image | BandImage, tuple[int, int]]:
        if is_jpeg(opened):
            full_size = upright_jpeg_size(opened)
            shrink_jpeg(opened, min(full_size) / self.side)
            image = as_rgb(opened)
        else:
            image = decoded(opened)
            full_size = image.size
        size = kept_size(full_size, self.side)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        return image, full_size


@dataclass
class _Part:
    """Some images, one after the other."""

    pixels: UInt8[Tensor, " bytes"]
    sizes: list[tuple[int, int]] = field(default_factory=list)
    full_sizes: list[tuple[int, int]] = field(default_factory=list)
    broken: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By place in this part."""


class _Decoded(Dataset["_Part"]):
    def __init__(self, source: ImageSource, side: int) -> None:
        self._source = source
        self._keep = _Keep(side)

    def __getitem__(self, indices: range) -> _Part:
        part, arrays = _Part(torch.empty(0, dtype=torch.uint8)), []
        for place, index in enumerate(indices):
            try:
                image, full_size = self._source.read(index, self._keep)
            except BrokenImageError as error:
                part.broken[place] = error.name, error.reason
                part.sizes.append((0, 0))
                part.full_sizes.append((0, 0))
                continue
            arrays.append(np.asarray(image).reshape(-1))
            part.sizes.append(image.size)
            part.full_sizes.append(full_size)
        if arrays:
            part.pixels = torch.from_numpy(np.concatenate(arrays))
        return part


def _read(source: ImageSource, side: int, num_workers: int, expected: int) -> Iterator[_Part]:
    """Yield the decoded images in the order of the source."""
    ranges = [
        range(first, min(first + _IMAGES_AT_ONCE, len(source)))
        for first in range(0, len(source), _IMAGES_AT_ONCE)
    ]
    part_bytes = 2 * expected // len(ranges)
    workers = fit_workers(min(num_workers, len(ranges)), prefetch=2, batch_bytes=part_bytes)
    return load_batches(
        _Decoded(source, side),
        workers=workers,
        batch_size=None,
        sampler=ranges,
        generator=torch.Generator(),
    )


class _Buffer:
    """A buffer that grows if the images are larger than expected."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._pixels = torch.empty(capacity, dtype=torch.uint8, device=device)
        self._used = 0

    def add(self, pixels: UInt8[Tensor, " bytes"]) -> None:
        """Append pixels."""
        self._reserve(len(pixels))
        self._pixels[self._used : self._used + len(pixels)] = pixels
        self._used += len(pixels)

    def end(self, *, room: int) -> UInt8[Tensor, " bytes"]:
        """Return everything that was added, and ``room`` zeros."""
        self._reserve(room)
        self._pixels[self._used : self._used + room] = 0
        return self._pixels[: self._used + room]

    def _reserve(self, count: int) -> None:
        needed = self._used + count
        if needed > len(self._pixels):
            larger = self._pixels.new_empty(max(needed, int(_GROWTH * len(self._pixels))))
            larger[: self._used] = self._pixels[: self._used]
            self._pixels = larger
