"""Batches to fine-tune on: random scale, random crop, mirrored by half."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from finetune_seg_configs import FinetuneDataConfig
from pcd_hub.data.labelled import IGNORE, Mask, SegmentationSet
from pcd_hub.data.loader import BatchPlan, StepSampler
from pcd_hub.data.shared_memory import fit_workers
from pcd_hub.data.workers import load_batches
from pcd_hub.errors import DataError


@dataclass(kw_only=True)
class Crops:
    """What one process sees in one step."""

    images: UInt8[Tensor, "b 3 height width"]
    masks: UInt8[Tensor, "b height width"]


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of an image, and what becomes of it."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom in the image's own pixels."""
    size: tuple[int, int]
    """Width and height in pixels to which it is resized; at most the crop's."""
    mirrored: bool


class RandomCrop:
    """A crop of one image and its mask; what lies outside the image is ``mean`` and unlabelled.

    Args:
        data: Size and scales.
        mean: The colour of the padding, in [0, 1] per channel.
    """

    def __init__(self, data: FinetuneDataConfig, *, mean: Sequence[float]) -> None:
        self._scales = data.scales
        self._height, self._width = data.crop_size
        self._colour = np.round(255 * np.array(mean)).astype(np.uint8)

    @property
    def num_bytes(self) -> int:
        """Of an image and its mask."""
        return 4 * self._height * self._width

    def draw(self, image_size: tuple[int, int], rng: np.random.Generator) -> Region:
        """Which part of an image of this width and height."""
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

    def cut(self, image: Image.Image, mask: Mask, region: Region) -> Crops:
        """That part, resized and padded, as a batch of one."""
        pixels = np.empty((self._height, self._width, 3), np.uint8)
        pixels[:] = self._colour
        labels = np.full((self._height, self._width), IGNORE, np.uint8)
        width, height = region.size
        # Only what the crop shows is resized: of a large image that is a small part.
        seen = image.resize(region.size, Image.Resampling.BILINEAR, box=region.box)
        seen_labels = Image.fromarray(mask).resize(
            region.size, Image.Resampling.NEAREST, box=region.box
        )
        pixels[:height, :width] = np.asarray(seen)
        labels[:height, :width] = np.asarray(seen_labels)
        if region.mirrored:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        return Crops(
            images=torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None],
            masks=torch.from_numpy(labels.copy())[None],
        )


def training_batches(
    images: SegmentationSet, crop: RandomCrop, plan: BatchPlan, *, num_workers: int
) -> Iterator[Crops]:
    """This process's part of every global batch: a pure function of seed and step.

    Raises:
        DataError: If an image or its mask cannot be read, or they do not agree.
    """
    # With a generator of its own the loader draws nothing from torch's, whose state a resumed run
    # restores.
    batches = load_batches(
        _TrainingCrops(images, crop, seed=plan.seed),
        workers=fit_workers(num_workers, prefetch=2, batch_bytes=plan.batch_size * crop.num_bytes),
        batch_sampler=StepSampler(len(images), plan),
        collate_fn=list,
        generator=torch.Generator().manual_seed(plan.seed),
    )
    for found in batches:
        crops = [_whole(each) for each in found]
        yield Crops(
            images=torch.cat([each.images for each in crops]),
            masks=torch.cat([each.masks for each in crops]),
        )


class _TrainingCrops(Dataset[Crops | DataError]):
    """By (epoch, index); what is broken is handed over as its error, to be raised in one line."""

    def __init__(self, images: SegmentationSet, crop: RandomCrop, *, seed: int) -> None:
        self._images = images
        self._crop = crop
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Crops | DataError:
        epoch, index = key
        try:
            image, mask = self._images.pair(index)
        except DataError as error:
            return error
        rng = np.random.default_rng((self._seed, epoch, index))
        return self._crop.cut(image, mask, self._crop.draw(image.size, rng))


def _whole(crops: Crops | DataError) -> Crops:
    if isinstance(crops, DataError):
        raise crops
    return crops
