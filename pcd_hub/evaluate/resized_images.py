"""Segmentation images, resized to one size and read by worker processes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pcd_hub.data.labelled.segmentation_set import Mask, SegmentationSet
from pcd_hub.data.reading import read_batches
from pcd_hub.evaluate.feature_maps import compute_device
from pcd_hub.evaluate.segmentation import LabelledImages

_BATCH_SIZE = 16


def resized_images(
    images: SegmentationSet, size: int, *, resize_masks: bool, num_workers: int
) -> LabelledImages:
    """Resize images to ``size`` x ``size`` pixels, ignoring their aspect ratio.

    Args:
        images: The labelled set.
        size: Height and width in pixels.
        resize_masks: Resize the masks too, to the nearest value; otherwise they keep their size.
        num_workers: Processes that read images; 0 for none.
    """
    masks = MaskCache(images, size if resize_masks else None)
    return LabelledImages(
        images=ResizedImages(images, size, masks, num_workers=num_workers), masks=masks
    )


def resized_tensors(images: SegmentationSet, size: int, *, num_workers: int) -> LabelledImages:
    """Resize images and masks to ``size`` x ``size`` pixels, and keep them in memory.

    Args:
        images: The labelled set.
        size: Height and width in pixels.
        num_workers: Processes that read images; 0 for none.
    """
    masks = MaskCache(images, size)
    read = ResizedImages(images, size, masks, num_workers=num_workers)
    rows = list(range(len(images)))
    parts = [rows[at : at + _BATCH_SIZE] for at in rows[::_BATCH_SIZE]]
    return LabelledImages(
        images=torch.cat([*read.batches(parts)]), masks=torch.stack([masks[row] for row in rows])
    )


class MaskCache:
    """Masks of a set, cached in memory after the first read: one byte per pixel.

    Args:
        images: The labelled set.
        size: Height and width in pixels to which masks are resized; None for their own size.
    """

    def __init__(self, images: SegmentationSet, size: int | None) -> None:
        self._images = images
        self.size = size
        self._masks: dict[int, UInt8[Tensor, "height width"]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, row: int) -> bool:
        return row in self._masks

    def __getitem__(self, row: int) -> UInt8[Tensor, "height width"]:
        if row not in self._masks:
            self._masks[row] = _resized_mask(self._images.pair(row)[1], self.size)
        return self._masks[row]

    def add(self, masks: UInt8[Tensor, " pixels"], sizes: Mapping[int, tuple[int, int]]) -> None:
        """Store the flattened, concatenated masks of some rows, given their sizes by row."""
        parts = masks.split([height * width for height, width in sizes.values()])
        # Copy, because a worker's tensor occupies shared memory, which is scarce.
        for (row, size), part in zip(sizes.items(), parts, strict=True):
            self._masks[row] = part.clone().view(size)


class ResizedImages:
    """Images that are read and resized on access; their masks are added to ``masks``."""

    def __init__(
        self, images: SegmentationSet, size: int, masks: MaskCache, *, num_workers: int
    ) -> None:
        self._images = images
        self._size = size
        self._masks = masks
        self._num_workers = num_workers

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: list[int]) -> UInt8[Tensor, "b 3 size size"]:
        (batch,) = self._read([rows], num_workers=0)
        return batch

    def batches(self, rows: Sequence[list[int]]) -> Iterator[UInt8[Tensor, "b 3 size size"]]:
        """Yield the images of each list of rows, read by worker processes."""
        return self._read(rows, num_workers=self._num_workers)

    def _read(
        self, rows: Sequence[list[int]], *, num_workers: int
    ) -> Iterator[UInt8[Tensor, "b 3 size size"]]:
        image_bytes = 3 * self._size**2 + self._masks[0].numel()
        batches = read_batches(
            partial(_read_row, self._images, self._size, self._masks.size),
            ([(row, row not in self._masks) for row in each] for each in rows),
            num_workers=num_workers,
            batch_bytes=image_bytes * max(map(len, rows), default=0),
            collate=_collate,
            pin_memory=compute_device() == "cuda",
        )
        for batch in batches:
            self._masks.add(batch.masks, batch.mask_sizes)
            yield batch.images.permute(0, 3, 1, 2).contiguous()


class _Row(NamedTuple):
    row: int
    image: UInt8[Tensor, "size size 3"]
    mask: UInt8[Tensor, "height width"] | None
    """None if the mask is already cached."""


class _Batch(NamedTuple):
    images: UInt8[Tensor, "b size size 3"]
    masks: UInt8[Tensor, " pixels"]
    """All masks, flattened and concatenated, because each tensor from a worker is an open file."""
    mask_sizes: dict[int, tuple[int, int]]
    """Height and width by row, in the order of ``masks``."""


def _read_row(
    images: SegmentationSet, size: int, mask_size: int | None, key: tuple[int, bool]
) -> _Row:
    row, with_mask = key
    image, mask = images.pair(row) if with_mask else (images.image(row), None)
    resized = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3)
    return _Row(
        row,
        torch.from_numpy(np.array(resized)),
        None if mask is None else _resized_mask(mask, mask_size),
    )


def _resized_mask(mask: Mask, size: int | None) -> UInt8[Tensor, "_ _"]:
    image = Image.fromarray(mask)
    if size is not None:
        image = image.resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image))


def _collate(rows: list[_Row]) -> _Batch:
    masks = {each.row: each.mask for each in rows if each.mask is not None}
    return _Batch(
        images=torch.stack([each.image for each in rows]),
        masks=torch.cat([torch.empty(0, dtype=torch.uint8), *map(torch.flatten, masks.values())]),
        mask_sizes={row: (mask.shape[0], mask.shape[1]) for row, mask in masks.items()},
    )
