"""Configurations as ``{"group.field": value}``, also those of earlier versions."""

from collections.abc import Mapping
from typing import Any

REMOVED: Mapping[str, Any] = {"data.renderer": "opencv"}
"""Fields that the configurations of shipped weights have, with the only value that they had."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as ``{"group.field": value}``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def is_removed(name: str, value: Any) -> bool:
    """Check whether a field is one of :data:`REMOVED` and has that value."""
    return name in REMOVED and REMOVED[name] == value
