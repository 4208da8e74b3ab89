"""Batches of images and targets for torchvision's detectors, and detections as COCO results."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pycocotools import mask as mask_codes
from torch import Tensor
from torch.utils.data import Sampler

from pcd_hub.data.batch_plan import BatchPlan, StepSampler
from pcd_hub.data.decoding import BrokenImageError, as_rgb, decode
from pcd_hub.data.labelled.coco import (
    CocoImage,
    Segmentation,
    decode_run_length_code,
    to_run_length_code,
)
from pcd_hub.data.labelled.coco_validation import clip_box
from pcd_hub.data.reading import read_batches
from pcd_hub.errors import DataError
from pcd_hub.train.detection.orientation_batches import OrientationSampler

Target = dict[str, Tensor]
"""``boxes`` (n 4, corners in pixels), ``labels`` (n, starting at 1), optional ``masks`` (n h w)."""


class Example(NamedTuple):
    """One image and its annotated objects."""

    image: UInt8[Tensor, "3 height width"]
    target: Target


class Labels:
    """Mapping between category ids, which may have gaps, and labels 1, 2, ...; 0 is background."""

    def __init__(self, categories: Mapping[int, str]) -> None:
        self.category_ids = tuple(sorted(categories))
        self._labels = {key: label for label, key in enumerate(self.category_ids, start=1)}

    def label(self, category_id: int) -> int:
        """Return the label of a category id."""
        return self._labels[category_id]

    def category_id(self, label: int) -> int:
        """Return the category id of a label."""
        return self.category_ids[label - 1]


def detection_batches(
    images: Sequence[CocoImage],
    labels: Labels,
    plan: BatchPlan,
    *,
    masks: bool,
    by_orientation: bool = False,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[list[Example]]:
    """Yield this process's share of every global batch, each image flipped with probability 0.5.

    The images and flips are a pure function of seed and step.

    Args:
        images: Training images.
        labels: Labels of the categories.
        plan: How the global batch is split among processes.
        masks: Read the objects' masks.
        by_orientation: Fill each step with images that are all wider than tall, or all not.
        num_workers: Processes that read images; 0 for none.
        pin_memory: Page-lock the examples, for CUDA.

    Raises:
        DataError: If an image cannot be read, or its size is not that of its annotation.
    """
    if by_orientation:
        wide = [image.width > image.height for image in images]
        sampler: Sampler[list[tuple[int, int]]] = OrientationSampler(wide, plan)
    else:
        sampler = StepSampler(len(images), plan)
    return read_batches(
        partial(_training_example, images, labels, plan.seed, masks),
        sampler,
        num_workers=num_workers,
        batch_bytes=largest_batch(images, plan.batch_size, masks=masks),
        pin_memory=pin_memory,
    )


def _training_example(
    images: Sequence[CocoImage],
    labels: Labels,
    seed: int,
    masks: bool,  # noqa: FBT001
    key: tuple[int, int],
) -> Example:
    """Read the example of an (epoch, index) pair."""
    epoch, index = key
    example = read_example(images[index], labels, masks=masks)
    flip = np.random.default_rng((seed, epoch, index)).random() < 0.5
    return mirrored(example) if flip else example


def largest_batch(images: Sequence[CocoImage], batch_size: int, *, masks: bool) -> int:
    """Return the bytes of the batch of the largest images, with the masks of all objects."""
    sizes = (
        image.width * image.height * (3 + masks * len(image.objects)) + 64 * len(image.objects)
        for image in images
    )
    return sum(heapq.nlargest(batch_size, sizes))


def read_images(
    images: Sequence[CocoImage], *, num_workers: int, pin_memory: bool = False
) -> Iterator[UInt8[Tensor, "3 _ _"]]:
    """Yield the images in order, prefetched by workers.

    Raises:
        DataError: When an unreadable image is reached; see :func:`read_image`.
    """
    return read_batches(
        read_image,
        [[image] for image in images],
        num_workers=num_workers,
        batch_bytes=largest_batch(images, 1, masks=False),
        collate=itemgetter(0),
        pin_memory=pin_memory,
    )


def read_example(image: CocoImage, labels: Labels, *, masks: bool) -> Example:
    """Read an image and its objects without crowds, as detectron2 does in training."""
    pixels = read_image(image)  # before the masks, as it checks their size
    objects = [each for each in image.objects if not each.is_crowd]
    boxes = [clip_box(each.box, image.width, image.height) for each in objects]
    target = {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "labels": torch.tensor([labels.label(each.category_id) for each in objects]).long(),
    }
    if masks:
        empty = torch.zeros(0, image.height, image.width, dtype=torch.uint8)
        found = [decode_mask(each.segmentation, image)[None] for each in objects]
        target["masks"] = torch.cat([empty, *found])
    return Example(image=pixels, target=target)


def read_image(image: CocoImage) -> UInt8[Tensor, "3 height width"]:
    """Read an image as upright RGB.

    Raises:
        DataError: If it is broken, or its size is not that of its annotation.
    """
    try:
        pixels = decode(image.path, str(image.path), lambda file: np.array(as_rgb(file)))
    except BrokenImageError as error:
        raise DataError(
            f"{error.name} cannot be read ({error.reason}); repair or remove it"
        ) from error
    if pixels.shape[:2] != (image.height, image.width):
        height, width = pixels.shape[:2]
        raise DataError(
            f"{image.path} has {width} x {height} pixels, its labels say {image.width} x "
            f"{image.height}; correct image {image.image_id} in them, or its boxes do not fit"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def decode_mask(segmentation: Segmentation | None, image: CocoImage) -> UInt8[Tensor, "h w"]:
    """Decode a mask of 0 and 1 from polygons or a run-length code."""
    if segmentation is None:
        raise DataError(
            f"{image.path} has an object without a mask, expected one for every object; add it or "
            "use --detector.masks no"
        )
    code = to_run_length_code(segmentation, image.height, image.width)
    return torch.from_numpy(decode_run_length_code(code))


def mirrored(example: Example) -> Example:
    """Flip an example horizontally."""
    left, top, right, bottom = example.target["boxes"].unbind(1)
    width = example.image.shape[2]
    target = {**example.target, "boxes": torch.stack([width - right, top, width - left, bottom], 1)}
    if "masks" in target:
        target["masks"] = target["masks"].flip(2)
    return Example(image=example.image.flip(2), target=target)


def move_to_device(
    examples: list[Example], device: torch.device
) -> tuple[list[Float[Tensor, "3 _ _"]], list[Target]]:
    """Move examples to the device as torchvision's detectors take them: pixels in [0, 1]."""
    images = [example.image.to(device, non_blocking=True) / 255 for example in examples]
    targets = [
        {name: value.to(device, non_blocking=True) for name, value in example.target.items()}
        for example in examples
    ]
    return images, targets


def coco_results(
    image: CocoImage, output: Mapping[str, Tensor], labels: Labels
) -> list[dict[str, Any]]:
    """Convert a detector's output for one image to entries of a COCO results file."""
    boxes = output["boxes"].float().cpu()
    sizes = boxes[:, 2:] - boxes[:, :2]
    results: list[dict[str, Any]] = [
        {
            "image_id": image.image_id,
            "category_id": labels.category_id(label),
            "bbox": [*box[:2], *size],
            "score": score,
        }
        for box, size, label, score in zip(
            boxes.tolist(),
            sizes.tolist(),
            output["labels"].tolist(),
            output["scores"].float().tolist(),
            strict=True,
        )
    ]
    if "masks" in output:
        for result, inside in zip(results, output["masks"][:, 0].cpu() >= 0.5, strict=True):
            result["segmentation"] = encode_mask(inside)
    return results


def encode_mask(inside: Bool[Tensor, "h w"]) -> dict[str, Any]:
    """Encode a mask as a compressed run-length code that JSON can hold."""
    code: Any = mask_codes.encode(np.asfortranarray(inside.numpy().astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}
