"""What a weight is, where it came from, what it scored, under which licences."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from pcd_hub.errors import WeightError


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """The provenance of one weight.

    Written by a recipe, never by hand; a fact that is not known stays out.
    """

    name: str
    """``<timm architecture>.pcd[_<what is different>]``."""
    architecture: str
    created: str
    """UTC, ISO 8601."""
    recipe: str
    """Script and configuration name."""
    config: dict[str, Any]
    """The resolved configuration."""
    teacher: dict[str, Any]
    data: dict[str, Any]
    """Source, fingerprint, number of images."""
    steps: int
    images_seen: int
    """Images, each in two views."""
    seed: int
    code: dict[str, Any]
    """Version of the package, git commit and dirty flag."""
    versions: dict[str, str]
    hardware: dict[str, Any]
    """Processes, device, wall seconds."""
    licenses: dict[str, str]
    """Of code, weights, teacher and data."""
    untrained: tuple[str, ...] = ()
    """Parameters that the distillation does not reach and that keep their random start."""
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Strict JSON.

        Raises:
            WeightError: If a value is not finite: a record holds what was measured, or nothing.
        """
        try:
            return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        except ValueError as error:
            raise WeightError(
                f"the record of {self.name} holds a value that is no finite number"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "WeightRecord":
        """Rebuild a record.

        Raises:
            WeightError: If a field is missing or unknown.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        required = {
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if unknown := sorted(set(raw) - known):
            raise WeightError(
                f"a record has no field {unknown[0]!r}; was it written by a newer pcd_hub?"
            )
        if missing := sorted(required - set(raw)):
            raise WeightError(f"the record has no {missing[0]!r}; it is not whole")
        return cls(**{**raw, "untrained": tuple(raw.get("untrained", ()))})


def finite_or_none(value: float) -> float | None:
    """``value``, or None where it is not a finite number, as JSON has no other way to say so."""
    return value if math.isfinite(value) else None
