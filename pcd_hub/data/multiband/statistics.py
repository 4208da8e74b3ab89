"""Mean and standard deviation of bands, from a sample of the images."""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple, cast

import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.multiband.image import BandImage
from pcd_hub.data.multiband.names import GRAY, RGB
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

SAMPLE = 64
"""Number of images that are measured."""
_MIN_STD = 0.02
_KNOWN: dict[str, tuple[float, float]] = {
    **dict(zip(RGB, zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True), strict=True)),
    GRAY[0]: (0.449, 0.226),  # the means of ImageNet's three
}
"""Mean and standard deviation of the bands that pretrained networks know."""


class BandStatistics(NamedTuple):
    """Mean and standard deviation of every band, of values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def band_statistics(source: ImageSource | ImageStream, bands: tuple[str, ...]) -> BandStatistics:
    """Return ImageNet's values for red, green, blue and gray, and measure the other bands.

    Args:
        source: Images, opened as :class:`BandImage`.
        bands: Names of the bands.

    Raises:
        DataError: If no image of the sample can be read; the message gives the first reason.
    """
    mean, std = _measure(source)
    for band, name in enumerate(bands):
        if name in _KNOWN:
            mean[band], std[band] = _KNOWN[name]
    return BandStatistics(
        tuple(round(float(value), 4) for value in mean),
        tuple(round(max(_MIN_STD, float(value)), 4) for value in std),
    )


def _measure(source: ImageSource | ImageStream) -> tuple[np.ndarray, np.ndarray]:
    means, squares, largest = [], [], 0
    first_error: BrokenImageError | None = None
    for image in _sample(source):
        if isinstance(image, BrokenImageError):
            first_error = first_error or image
            continue
        pixels = np.asarray(image).reshape(-1, len(image.bands)) / 255
        # Every image counts the same, whatever its size.
        means.append(pixels.mean(0))
        squares.append((pixels**2).mean(0))
        largest = max(largest, int(np.asarray(image).max()))
    if not means:
        raise DataError(f"none of the first images can be read: {first_error}")
    if largest < 255 / 10:
        log.warning(
            "the largest value of %d images is %d of 255 after scaling; set --data.band-range to "
            "the range of the data set",
            *(len(means), largest),
        )
    mean = np.mean(means, axis=0)
    return mean, np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 0))


def _sample(source: ImageSource | ImageStream) -> Iterator[BandImage | BrokenImageError]:
    if isinstance(source, ImageSource):
        step = max(1, len(source) // SAMPLE)
        images = (partial(source.read, index) for index in range(0, len(source), step))
    else:
        images = (image for image, _ in source.read(state=None))
    for read in islice(images, SAMPLE):
        try:
            yield cast("BandImage", read(lambda image: image))
        except BrokenImageError as error:
            yield error
