"""The bands of a backbone's input, and their normalisation."""

from typing import NamedTuple

from pcd_hub.data.multiband.names import RGB
from pcd_hub.models.entries import entry_cfg
from pcd_hub.weights.record import WeightRecord


def recorded_bands(record: WeightRecord) -> tuple[str, ...]:
    """Return the names of the bands of a weight's images; red, green, blue if none are stated."""
    names = record.data.get("bands")
    return tuple(map(str, names)) if isinstance(names, list) and names else RGB


class InputBands(NamedTuple):
    """Names, mean and standard deviation of the bands, in the order of the input channels."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    """Mean of the values in [0, 1]."""
    std: tuple[float, ...]

    @classmethod
    def rgb(cls, architecture: str) -> "InputBands":
        """Return red, green and blue, normalised as the architecture's ``pcd`` weights expect."""
        cfg = entry_cfg(architecture)
        return cls(RGB, tuple(cfg.mean), tuple(cfg.std))

    @property
    def is_rgb(self) -> bool:
        """Return True for red, green and blue in this order."""
        return self.names == RGB
