"""The last map of a model under test, for images as they come."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models_under_test import ModelUnderTest
from pcd_hub.data.classified import ClassifiedSet
from pcd_hub.data.sources import ImageSource
from pcd_hub.models.grid import pixel_grid

Pixels = Callable[[Tensor], Tensor]
"""Images ``(b, 3, S, S)`` in [0, 1] -> ``(b, c, h, w)``."""

_SHARE = 7 / 8
_AT_ONCE = 64


def pixels_of(under_test: ModelUnderTest, image_size: int) -> Pixels:
    """The model in eval mode, on the GPU if there is one; its own normalisation applied."""
    device = compute_device()
    grid = pixel_grid(under_test.model, image_size=image_size).to(device).eval()
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (under_test.mean, under_test.std)
    )
    return lambda images: grid((images - mean) / std)


@torch.inference_mode()
def all_maps(
    pixels: Pixels, images: ImageSource | ClassifiedSet, rows: Sequence[int], *, size: int
) -> Iterator[Tensor]:
    """Of these images, in order, some at a time, on the CPU."""
    for batch in centre_crops(images, rows, size=size):
        yield pixels(batch).float().cpu()


def centre_crops(
    images: ImageSource | ClassifiedSet, rows: Sequence[int], *, size: int
) -> Iterator[Tensor]:
    """The middle of each image, 7/8 of its shorter side as ImageNet is evaluated, in [0, 1]."""
    for start in range(0, len(rows), _AT_ONCE):
        crops = [_centre_crop(images[row], size) for row in rows[start : start + _AT_ONCE]]
        batch = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))
        yield batch.permute(0, 3, 1, 2).to(compute_device()).float() / 255


def compute_device() -> str:
    """Where the models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _centre_crop(image: Image.Image, size: int) -> Image.Image:
    side = _SHARE * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
