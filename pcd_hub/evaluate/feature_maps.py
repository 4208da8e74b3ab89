"""Extract the last feature map of a frozen model from any set of images."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pcd_hub.data.labelled.classification import ClassificationSet
from pcd_hub.data.reading import read_batches
from pcd_hub.data.sources.open import ImageSource
from pcd_hub.data.workers import default_workers
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.progress import progress
from pcd_hub.models.grid import pixel_grid

FeatureExtractor = Callable[[Tensor], Tensor]
"""Images ``(b, 3, S, S)`` in [0, 1] -> feature maps ``(b, c, h, w)``."""

_CROP_FRACTION = 7 / 8
_BATCH_SIZE = 64


def feature_extractor(
    under_test: EvaluatedModel, image_size: int, *, device: torch.device | str | None = None
) -> FeatureExtractor:
    """Return the model's feature extractor, in eval mode and with its own input normalisation.

    Args:
        under_test: The model, which is moved to ``device``.
        image_size: Height and width of the images in pixels.
        device: Default: the GPU if there is one.
    """
    device = device or compute_device()
    grid = pixel_grid(under_test.model, image_size=image_size).to(device).eval()
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (under_test.mean, under_test.std)
    )
    return lambda images: grid((images - mean) / std)


def extract_feature_maps(
    extract: FeatureExtractor,
    images: ImageSource | ClassificationSet,
    rows: Sequence[int],
    *,
    size: int,
    num_workers: int,
    what: str,
    disable: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Yield the feature maps of the centre crops of some images, batch by batch, on the CPU.

    Args:
        extract: The feature extractor.
        images: Any finite set of images.
        rows: Indices of the images, in the order of the result.
        size: Height and width of the centre crops in pixels.
        num_workers: Processes that read images; 0 for none.
        what: Label of the progress bar.
        disable: Hide the progress bar.
        device: Device of ``extract``. Default: the GPU if there is one.
    """
    batches = centre_crops(images, rows, size=size, num_workers=num_workers, device=device)
    total = math.ceil(len(rows) / _BATCH_SIZE)
    for batch in progress(batches, what, total=total, disable=disable):
        with torch.inference_mode():
            maps = extract(batch).float().cpu()
        yield maps


def centre_crops(
    images: ImageSource | ClassificationSet,
    rows: Sequence[int],
    *,
    size: int,
    num_workers: int,
    device: torch.device | str | None = None,
) -> Iterator[Float[Tensor, "b 3 size size"]]:
    """Yield batches of centre crops in [0, 1].

    As in ImageNet evaluation, a crop covers 7/8 of the image's shorter side.
    """
    device = torch.device(device or compute_device())
    batches = read_batches(
        partial(_centre_crop, images, size),
        [list(rows[start : start + _BATCH_SIZE]) for start in range(0, len(rows), _BATCH_SIZE)],
        num_workers=num_workers,
        batch_bytes=_BATCH_SIZE * 3 * size**2,
        collate=torch.stack,
        pin_memory=device.type == "cuda",
    )
    for batch in batches:
        yield batch.permute(0, 3, 1, 2).to(device, non_blocking=True).float() / 255


def compute_device() -> str:
    """Return "cuda" if a GPU is available, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def num_reading_workers(requested: int | None) -> int:
    """Return the requested number of workers; by default 1 on CPUs, up to 16 with a GPU."""
    return default_workers(torch.device(compute_device())) if requested is None else requested


def _centre_crop(
    images: ImageSource | ClassificationSet, size: int, row: int
) -> UInt8[Tensor, "size size 3"]:
    image = images[row]
    side = _CROP_FRACTION * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box)))
