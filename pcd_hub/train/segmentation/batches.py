"""Training batches for segmentation: random scale, random crop, random horizontal flip."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from pcd_hub.data.batch_plan import BatchPlan, StepSampler
from pcd_hub.data.labelled.segmentation_set import IGNORE, Mask, SegmentationSet
from pcd_hub.data.reading import read_batches
from pcd_hub.train.configs.segmentation import FinetuneDataConfig

Crop = tuple[UInt8[Tensor, "3 height width"], UInt8[Tensor, "height width"]]
"""A crop and its mask."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region of an image, and how it is resized and flipped."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image."""
    size: tuple[int, int]
    """Width and height in pixels after resizing; at most the crop's."""
    mirrored: bool


class RandomCrop:
    """Random crop of an image and its mask; padding has colour ``mean`` and no label.

    Args:
        data: Size of the crop and range of scales.
        mean: Colour of the padding, in [0, 1] per channel.
    """

    def __init__(self, data: FinetuneDataConfig, *, mean: Sequence[float]) -> None:
        self._scales = data.scales
        self._height, self._width = data.crop_size
        self._colour = np.round(255 * np.array(mean)).astype(np.uint8)

    @property
    def num_bytes(self) -> int:
        """Bytes of a crop and its mask."""
        return 4 * self._height * self._width

    def draw(self, image_size: tuple[int, int], rng: np.random.Generator) -> Region:
        """Draw a region of an image of this width and height."""
        scale = rng.uniform(*self._scales)
        spans, sides = [], []
        for pixels, wanted in zip(image_size, (self._width, self._height), strict=True):
            scaled = max(1, round(pixels * scale))
            side = min(scaled, wanted)
            start = int(rng.integers(scaled - side + 1))
            spans.append((start * pixels / scaled, (start + side) * pixels / scaled))
            sides.append(side)
        (left, right), (top, bottom) = spans
        return Region(
            box=(left, top, right, bottom),
            size=(sides[0], sides[1]),
            mirrored=bool(rng.random() < 0.5),
        )

    def cut(self, image: Image.Image, mask: Mask, region: Region) -> Crop:
        """Cut out a region, resize and pad it."""
        pixels = np.empty((self._height, self._width, 3), np.uint8)
        pixels[:] = self._colour
        labels = np.full((self._height, self._width), IGNORE, np.uint8)
        width, height = region.size
        # Only the region is resized, which is a small part of a large image.
        resized = image.resize(region.size, Image.Resampling.BILINEAR, box=region.box)
        resized_labels = Image.fromarray(mask).resize(
            region.size, Image.Resampling.NEAREST, box=region.box
        )
        pixels[:height, :width] = np.asarray(resized)
        labels[:height, :width] = np.asarray(resized_labels)
        if region.mirrored:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(labels.copy())


def crop_batches(
    images: SegmentationSet,
    crop: RandomCrop,
    plan: BatchPlan,
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[list[Tensor]]:
    """Yield crops and masks: this process's share of every global batch, by seed and step.

    Raises:
        DataError: If an image or its mask cannot be read, or their sizes differ.
    """
    return read_batches(
        partial(_cut, images, crop, plan.seed),
        StepSampler(len(images), plan),
        num_workers=num_workers,
        batch_bytes=plan.batch_size * crop.num_bytes,
        collate=default_collate,
        pin_memory=pin_memory,
    )


def _cut(images: SegmentationSet, crop: RandomCrop, seed: int, key: tuple[int, int]) -> Crop:
    """Cut the crop of an (epoch, index) pair."""
    epoch, index = key
    image, mask = images.pair(index)
    rng = np.random.default_rng((seed, epoch, index))
    return crop.cut(image, mask, crop.draw(image.size, rng))


def whole_images(
    images: SegmentationSet, rows: Sequence[int], *, num_workers: int, pin_memory: bool = False
) -> Iterator[tuple[UInt8[Tensor, "height width 3"], UInt8[Tensor, "height width"]]]:
    """Yield image and mask of each row, in order.

    Raises:
        DataError: If an image or its mask cannot be read, or their sizes differ.
    """
    width, height = images.image(rows[0]).size if rows else (1, 1)
    return read_batches(
        partial(_whole_image, images),
        [[row] for row in rows],
        num_workers=num_workers,
        batch_bytes=4 * width * height,  # of the first image; the others are similar
        collate=itemgetter(0),
        pin_memory=pin_memory,
    )


def _whole_image(images: SegmentationSet, row: int) -> tuple[Tensor, Tensor]:
    image, mask = images.pair(row)
    return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(mask))
