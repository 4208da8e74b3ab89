"""Mean and standard deviation of bands, from a sample of the images."""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.multiband.image import BandImage
from pcd_hub.data.multiband.names import GRAY, RGB
from pcd_hub.data.multiband.values import brightest, value_shares
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

SAMPLE = 64
"""Number of images that are measured."""
_MIN_STD = 0.02
_DARK, _CLIPPED = 255 / 10, 0.2
"""A range may be wrong if most values are below its tenth, or a fifth of them at its end."""
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
    mean, std = _measure(source, bands)
    for band, name in enumerate(bands):
        if name in _KNOWN:
            mean[band], std[band] = _KNOWN[name]
    return BandStatistics(
        tuple(round(float(value), 4) for value in mean),
        tuple(round(max(_MIN_STD, float(value)), 4) for value in std),
    )


def _measure(
    source: ImageSource | ImageStream, bands: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    found: list[np.ndarray] = []
    first_error: BrokenImageError | None = None
    for image in _sample(source):
        if isinstance(image, BrokenImageError):
            first_error = first_error or image
        else:
            found.append(value_shares(image))
    if not found:
        raise DataError(f"none of the first images can be read: {first_error}")
    shares = np.stack(found)  # every image counts the same, whatever its size
    _check_range(shares, bands)
    values = np.arange(256) / 255
    mean = (shares @ values).mean(0)
    return mean, np.sqrt(np.maximum((shares @ values**2).mean(0) - mean**2, 0))


def _check_range(shares: Float[np.ndarray, "images bands 256"], bands: tuple[str, ...]) -> None:
    """Warn of values that use little of the range, or exceed it."""
    largest = brightest(shares).max(1)
    num_dark = int((largest < _DARK).sum())
    if num_dark > len(largest) / 10:
        log.warning(
            "the values of %d of %d images are at most %d of 255 after scaling (but for their "
            "brightest 0.1 %%); set --data.band-range to the range of the data set",
            *(num_dark, len(largest), largest[largest < _DARK].max()),
        )
    is_mask = ~shares[..., 1:255].any((0, 2)) & shares[..., 0].any(0)  # black and white alone
    clipped = np.where(is_mask, 0, shares[..., 255].mean(0))
    most = clipped.argmax()
    if clipped[most] > _CLIPPED:
        log.warning(
            "%.0f %% of the values of %s are at the end of the range or beyond it; set "
            "--data.band-range to the range of the data set",
            *(100 * clipped[most], bands[most]),
        )


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
