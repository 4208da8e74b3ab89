"""The bands of a start and those of the run."""

import logging

from pcd_hub.data.multiband.names import RGB
from pcd_hub.errors import StudentError
from pcd_hub.weights.input_bands import InputBands

log = logging.getLogger("pcd_hub")

Range = tuple[float, ...]
"""The values that become 0 and 1; empty for those of the type."""


def check_same_bands(own: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Check the names of a start's bands: RGB, or those of the run.

    Raises:
        StudentError: If they are others, or in another order.
    """
    if own not in (RGB, wanted):
        raise StudentError(
            f"it was trained on the bands {' '.join(own)}, this run has --data.bands "
            f"{' '.join(wanted)}; expected the same in the same order"
        )


def warn_of_other_bands(
    own: InputBands, own_range: Range, bands: InputBands, band_range: Range
) -> None:
    """Warn if a start was trained on images of other bands, or with other values of them.

    Args:
        own: Bands of the start.
        own_range: Range of their values.
        bands: Bands of the run, which are not red, green and blue.
        band_range: Range of their values.
    """
    if own.names != bands.names:
        log.warning(
            "the start was trained on red, green, blue; its first layer is adapted to the number "
            "of the bands %s, not to what they show",
            " ".join(bands.names),
        )
    elif own_range != band_range:
        ranges = (" ".join(map(str, one)) or "that of the type" for one in (own_range, band_range))
        log.warning(
            "the start was trained with --data.band-range %s, this run has %s; its first layer is "
            "not adapted",
            *ranges,
        )
    elif (own.mean, own.std) != (bands.mean, bands.std):
        log.warning(
            "the start was trained on images with mean %s and std %s, this run has %s and %s; its "
            "first layer is not adapted (--data.band-mean, --data.band-std)",
            *(own.mean, own.std, bands.mean, bands.std),
        )
