"""Images from which the ranges of an int8 graph are measured."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pcd_hub.data.sources.open import ImageSource, open_source
from pcd_hub.errors import DataError, WeightError
from pcd_hub.weights.formats.options import (
    MIN_CALIBRATION_IMAGES,
    NUM_CALIBRATION_IMAGES,
    NUM_COMPARED_IMAGES,
)
from pcd_hub.weights.formats.readme import band_names
from pcd_hub.weights.load import ReadWeight


class Calibration(NamedTuple):
    """Images of one size, resized as the probes do; none is in both sets."""

    images: UInt8[Tensor, "n 3 height width"]
    """They set the ranges."""
    compared: UInt8[Tensor, "m 3 height width"]
    """On them the features are compared with timm's."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalised(self, images: UInt8[Tensor, "b 3 height width"]) -> Float[Tensor, "b 3 h w"]:
        """Return images as the model takes them."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (images / 255 - mean) / std


def read_calibration(
    weight: ReadWeight, source: str | Path, *, num_images: int | None
) -> Calibration:
    """Read images at random, with a fixed seed, at the weight's own image size.

    Args:
        weight: The weight; its normalisation is applied.
        source: A folder of images, or another source of :func:`pcd_hub.data.sources.open_source`.
        num_images: Images that set the ranges, at most; fewer if the source has fewer.

    Raises:
        WeightError: If the weight does not take RGB images.
        DataError: If there are too few images or one cannot be read.
    """
    cfg = weight.config["pretrained_cfg"]
    height, width = cfg["input_size"][1:]
    if bands := band_names(weight):
        raise WeightError(
            f"--precision int8: the calibration images are RGB, not {', '.join(bands)}, of which "
            f"{weight.record.name} takes {len(bands)} channels; use float16"
        )
    images = _open(source)
    count = NUM_COMPARED_IMAGES + (num_images or NUM_CALIBRATION_IMAGES)
    rows = np.random.default_rng(0).permutation(len(images))[:count]
    pixels = torch.stack([_read(images, int(row), (width, height)) for row in rows])
    return Calibration(
        images=pixels[NUM_COMPARED_IMAGES:],
        compared=pixels[:NUM_COMPARED_IMAGES],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


def _open(source: str | Path) -> ImageSource:
    needed = MIN_CALIBRATION_IMAGES + NUM_COMPARED_IMAGES
    try:
        images = open_source(str(source))
    except DataError as error:
        raise DataError(f"--calibration: {error}") from error
    if not isinstance(images, ImageSource):
        raise DataError(
            f"--calibration {source}: a stream, from which images cannot be drawn at random; "
            "expected a folder of images"
        )
    if len(images) < needed:
        raise DataError(
            f"--calibration {source}: found {len(images)} images, expected at least {needed}, of "
            f"which {NUM_COMPARED_IMAGES} are set aside for the comparison; add images"
        )
    return images


def _read(images: ImageSource, row: int, size: tuple[int, int]) -> UInt8[Tensor, "3 height width"]:
    try:
        image = images[row]
    except DataError as error:
        raise DataError(f"--calibration: {error}; remove or repair it") from error
    resized = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
