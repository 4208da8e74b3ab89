"""The last map of a model under test, for images as they come."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pcd_hub.data.labelled.classification import ClassifiedSet
from pcd_hub.data.reading import read_batches
from pcd_hub.data.sources import ImageSource
from pcd_hub.data.workers import default_workers
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.progress import progress
from pcd_hub.models.grid import pixel_grid

Pixels = Callable[[Tensor], Tensor]
"""Images ``(b, 3, S, S)`` in [0, 1] -> ``(b, c, h, w)``."""

_SHARE = 7 / 8
_AT_ONCE = 64


def pixels_of(
    under_test: EvaluatedModel, image_size: int, *, device: torch.device | str | None = None
) -> Pixels:
    """The model in eval mode on ``device``, its own normalisation applied.

    Args:
        under_test: The model.
        image_size: Height and width of the images.
        device: The GPU if there is one, if not given.
    """
    device = device or compute_device()
    grid = pixel_grid(under_test.model, image_size=image_size).to(device).eval()
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (under_test.mean, under_test.std)
    )
    return lambda images: grid((images - mean) / std)


@torch.inference_mode()
def all_maps(
    pixels: Pixels,
    images: ImageSource | ClassifiedSet,
    rows: Sequence[int],
    *,
    size: int,
    num_workers: int,
    what: str,
    disable: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """The maps of these images, in order, some at a time, on the CPU.

    ``what`` names the bar, unless that is disabled; ``device`` is that of ``pixels``.
    """
    batches = centre_crops(images, rows, size=size, num_workers=num_workers, device=device)
    total = math.ceil(len(rows) / _AT_ONCE)
    for batch in progress(batches, what, total=total, disable=disable):
        yield pixels(batch).float().cpu()


def centre_crops(
    images: ImageSource | ClassifiedSet,
    rows: Sequence[int],
    *,
    size: int,
    num_workers: int,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """The middle of each image, 7/8 of its shorter side as ImageNet is evaluated, in [0, 1]."""
    device = torch.device(device or compute_device())
    batches = read_batches(
        partial(_centre_crop, images, size),
        [list(rows[start : start + _AT_ONCE]) for start in range(0, len(rows), _AT_ONCE)],
        num_workers=num_workers,
        batch_bytes=_AT_ONCE * 3 * size**2,
        collate=torch.stack,
        pin_memory=device.type == "cuda",
    )
    for batch in batches:
        yield batch.permute(0, 3, 1, 2).to(device, non_blocking=True).float() / 255


def compute_device() -> str:
    """Where the models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def reading_processes(asked: int | None) -> int:
    """How many processes read images: as asked, or 1 on CPUs and at most 16 beside a GPU."""
    return default_workers(torch.device(compute_device())) if asked is None else asked


def _centre_crop(
    images: ImageSource | ClassifiedSet, size: int, row: int
) -> UInt8[Tensor, "size size 3"]:
    image = images[row]
    side = _SHARE * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box)))
