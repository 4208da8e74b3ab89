"""Derive a distillation's settings from its images, student and device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Everything that the derived values depend on."""

    num_images: int | None
    """Images to train on; None for a stream."""
    short_side: int
    """Median of the images' shorter sides, in pixels."""
    device: str
    """Type of the devices: ``cpu`` or ``cuda``."""
    num_devices: int = 1
    """Processes, each with its own device."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Values that the user sets, by option; they are not derived."""


@dataclass(frozen=True)
class Decision:
    """A derived value."""

    option: str
    """Field of the configuration, such as ``optim.global_batch_size``."""
    value: Any
    reason: str
    """Reason that a person understands: "4,477 images / 4"."""


def derive(situation: Situation) -> tuple[Decision, ...]:
    """Return a value for every derived option that the user does not set."""
    del situation
    return ()
