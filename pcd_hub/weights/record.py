"""What a weight is, where it came from, what it scored, under which licences."""

import dataclasses
import json
import reprlib
from dataclasses import dataclass, field
from typing import Any

from pcd_hub.errors import WeightError
from pcd_hub.files.strict_json import COUNT, FINITE, TEXT, Field, check_fields, optional

NOT_STATED = "not stated"
LICENSED = ("code", "weights", "teacher", "data")
"""The licence chain."""


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("steps", "images_seen", "seed"), int),
    **dict.fromkeys(("config", "teacher", "data", "code", "versions", "hardware"), dict),
    **dict.fromkeys(("licenses", "model", "metrics"), dict),
    "untrained": (list, tuple),
}
"""Of a record's fields in JSON; text where nothing is said."""


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
    """Of all that ``LICENSED`` names; "not stated" where nobody said."""
    untrained: tuple[str, ...] = ()
    """Parameters that the distillation does not reach and that keep their random start."""
    model: dict[str, Any] = field(default_factory=dict)
    """Parameters, channels and cost, measured at export."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """:class:`Measurement` by a short name, as plain dicts."""

    @classmethod
    def trial(cls, architecture: str) -> "WeightRecord":
        """Of a weight that nobody keeps: to find out whether an architecture can be exported."""
        return cls(
            name=f"{architecture}.pcd",
            architecture=architecture,
            created="",
            recipe="",
            config={},
            teacher={},
            data={},
            steps=0,
            images_seen=0,
            seed=0,
            code={},
            versions={},
            hardware={},
            licenses=dict.fromkeys(LICENSED, NOT_STATED),
        )

    def measurements(self) -> dict[str, "Measurement"]:
        """``metrics`` as objects.

        Raises:
            WeightError: If one of them is no measurement.
        """
        return {
            name: Measurement.from_dict(raw, what=f"{self.name}: metrics.{name}")
            for name, raw in self.metrics.items()
        }

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
            WeightError: If a field is missing, unknown, or of another type.
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
        for name, value in raw.items():
            kinds = _KINDS.get(name, str)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise WeightError(
                    f"the record's {name} is {reprlib.repr(value)[:60]}; it is damaged"
                )
        for name in ("licenses", "versions"):
            if not all(isinstance(value, str) for value in raw[name].values()):
                raise WeightError(f"the record's {name} hold what is no text; it is damaged")
        return cls(**{**raw, "untrained": tuple(map(str, raw.get("untrained", ())))})


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One table: what was measured, on what, of which models, and how to do it again."""

    task: str
    """As "linear segmentation probe"."""
    dataset: str
    metric: str
    unit: str
    images: int
    """How many images the metric was taken on."""
    seeds: int
    protocol: str
    command: str
    subject: str
    """Which of the results is this weight's."""
    means: dict[str, float]
    """By model, over the seeds."""
    stds: dict[str, float] = field(default_factory=dict)
    """By model; empty if there was one seed."""

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, what: str) -> "Measurement":
        """Rebuild a measurement.

        Raises:
            WeightError: If it is not one, or its numbers do not belong together.
        """
        check_fields(raw, _MEASUREMENT, what=what)
        found = cls(**raw)
        spread = found.means.keys() if found.seeds > 1 else set()
        if found.subject not in found.means or found.stds.keys() != spread:
            raise WeightError(
                f"{what} is not whole: it needs {found.subject!r} among its finite means, and a "
                "standard deviation of each exactly if there were several seeds"
            )
        return found


_BY_MODEL = Field(
    lambda v: isinstance(v, dict) and all(map(FINITE.fits, v.values())), "finite numbers by model"
)
_MEASUREMENT = {
    **dict.fromkeys(("task", "dataset", "metric", "unit"), TEXT),
    **dict.fromkeys(("protocol", "command", "subject"), TEXT),
    **dict.fromkeys(("images", "seeds"), COUNT),
    "means": _BY_MODEL,
    "stds": optional(_BY_MODEL),
}
