"""The record of a weight: provenance, measurements and licences."""

import dataclasses
import json
import re
import reprlib
from dataclasses import dataclass, field
from typing import Any

from pcd_hub.errors import WeightError
from pcd_hub.files.strict_json import COUNT, FINITE, TEXT, Field, check_fields, optional, whole
from pcd_hub.weights.safety import unknown_fields

NOT_STATED = "not stated"
_ON_HUB = re.compile(r"hf(?:-stream)?:([\w.-]+/[\w.-]+)(?:/[^/:#]+)?(?::[^#]*)?(?:#.*)?")
"""``hf:ORG/NAME[/CONFIG][:SPLIT][#COLUMN]``"""
LICENSED = ("code", "weights", "teacher", "data")
"""The parts whose licences a record lists, besides ``start`` if there is one."""
HUB_LICENSES = frozenset(
    """afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    bsl-1.0 c-uda cc cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0
    eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0
    ms-pl ncsa odbl odc-by openrail osl-3.0 pddl postgresql unlicense wtfpl zlib""".split()  # noqa: SIM905 - sixty lines else
)
"""The Hub's licence identifiers; a card's metadata gives any other licence as ``other``."""


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("steps", "images_seen", "seed"), int),
    **dict.fromkeys(("config", "teacher", "data", "code", "versions", "hardware"), dict),
    **dict.fromkeys(("licenses", "model", "metrics", "held_out", "start", "imported"), dict),
    "averaged": dict,
    **dict.fromkeys(("untrained", "notes", "verdicts"), (list, tuple)),
}
"""JSON types of a record's fields; fields that are not listed are strings."""


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """The provenance of one weight.

    It is written by a recipe, never by hand, except for the notes; unknown values are left out.
    """

    name: str
    """``<timm architecture>.pcd[_<variant>]``, or ``.imported[_<variant>]``."""
    architecture: str
    created: str
    """Creation time in UTC, as ISO 8601."""
    recipe: str
    """Script and configuration file."""
    config: dict[str, Any]
    """The resolved configuration."""
    teacher: dict[str, Any]
    data: dict[str, Any]
    """Source or sources, fingerprint and number of images."""
    steps: int
    images_seen: int
    """Number of images seen in training, each in two views."""
    seed: int
    code: dict[str, Any]
    """Package version, git commit, and whether there were uncommitted changes."""
    versions: dict[str, str]
    hardware: dict[str, Any]
    """Device, number of processes, and wall time in seconds."""
    licenses: dict[str, str]
    """Licence of each of the :func:`licensed_parts`; "not stated" if unknown."""
    start: dict[str, Any] = field(default_factory=dict)
    """The weights that the training started from: source, name, sha256, license; empty if they were
    random."""
    averaged: dict[str, Any] = field(default_factory=dict)
    """Of a mean of the trained weights and their start: the start's share, and the hash of the
    trained weights' file. Empty if the weights are as they were trained."""
    untrained: tuple[str, ...] = ()
    """Parameters that receive no gradient in distillation and keep their initial values."""
    model: dict[str, Any] = field(default_factory=dict)
    """Number of parameters, channels and cost, measured at export."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Measurements by a short name, as plain dicts; see :class:`Measurement`."""
    held_out: dict[str, Any] = field(default_factory=dict)
    """Scores on images held out from training, at the start, the best and the last step, and the
    step of this weight; empty without held-out images."""
    verdicts: tuple[dict[str, Any], ...] = ()
    """The early verdicts that were logged during training: step, kind, words, cause, remedy, and
    whether it is bad."""
    notes: tuple[str, ...] = ()
    """Sentences for the card that a person adds, such as limits or what to compare with."""
    imported: dict[str, Any] = field(default_factory=dict)
    """The checkpoint of another library that this weight was read from: file, sha256, layout and
    more. Empty for a weight of pcd_hub. The facts of the training are then unknown: no steps, no
    images, no teacher."""
    pictures: str = ""
    """Images that the card's pictures show, with their licence; empty for generated scenes."""
    unknown: dict[str, Any] = field(default_factory=dict)
    """Fields written by a newer pcd_hub, which are preserved."""

    @property
    def sources(self) -> list[str]:
        """Sources of the training images; ``data`` has one as a text, several as a list."""
        source = self.data.get("source") or []
        return list(map(str, source)) if isinstance(source, list) else [str(source)]

    @property
    def hub_datasets(self) -> list[str]:
        """Names of those sources that are datasets on the Hub."""
        found = filter(None, map(_ON_HUB.fullmatch, self.sources))
        return [*dict.fromkeys(match[1] for match in found)]

    @classmethod
    def trial(cls, architecture: str) -> "WeightRecord":
        """Return a placeholder record, for a trial export of ``architecture``."""
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
        """Return ``metrics`` as :class:`Measurement` objects.

        Raises:
            WeightError: If an entry is not a valid measurement.
        """
        return {
            name: Measurement.from_dict(raw, what=f"{self.name}: metrics.{name}")
            for name, raw in self.metrics.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict, including unknown fields."""
        facts = json.loads(json.dumps(dataclasses.asdict(self)))
        added_later = ("averaged", "verdicts", "notes", "pictures", "imported")
        for added in added_later:  # without them, the bytes of older versions
            if not facts[added]:
                del facts[added]
        return facts | facts.pop("unknown")

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "WeightRecord":
        """Build a record from the dict that :meth:`to_dict` returns.

        Raises:
            WeightError: If a field is missing or has the wrong type.
        """
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "unknown"}
        required = {
            name
            for name, f in fields.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        unknown = unknown_fields(raw, fields, what="the record")
        raw = {name: raw[name] for name in raw if name not in unknown}
        if missing := sorted(required - set(raw)):
            raise WeightError(f"the record has no {missing[0]!r}; it is incomplete")
        for name, value in raw.items():
            kinds = _KINDS.get(name, str)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise WeightError(
                    f"the record's {name} is {reprlib.repr(value)[:60]}, expected {_named(kinds)}"
                )
        for name in ("licenses", "versions"):
            if not all(isinstance(value, str) for value in raw[name].values()):
                raise WeightError(f"the record's {name} must all be strings")
        texts = {key: tuple(map(str, raw.get(key, ()))) for key in ("untrained", "notes")}
        verdicts = tuple(one for one in raw.get("verdicts", ()) if isinstance(one, dict))
        return cls(**{**raw, **texts, "verdicts": verdicts, "unknown": unknown})


def licensed_parts(record: WeightRecord) -> tuple[str, ...]:
    """Return the parts whose licences a record must list."""
    if record.imported:
        return ("weights",)
    return (*LICENSED, "start") if record.start else LICENSED


def _named(kinds: type | tuple[type, ...]) -> str:
    names = {int: "an integer", str: "a string", dict: "an object"}
    return names.get(kinds, "a list") if isinstance(kinds, type) else "a list"


def named_share(dataset: str, share: float) -> str:
    """Return the name of a data set of which a share of the labels in (0, 1] is trained on."""
    return dataset if share == 1 else f"{dataset}, {100 * share:g} % of the labels"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of an evaluation, with the details needed to reproduce it."""

    task: str
    """Name of the task, such as "linear segmentation probe"."""
    dataset: str
    metric: str
    unit: str
    images: int
    """Number of evaluated images."""
    seeds: int
    protocol: str
    command: str
    subject: str
    """Key of this weight in ``means``; the other models are for comparison."""
    means: dict[str, float]
    """Mean over the seeds, by model."""
    stds: dict[str, float] = field(default_factory=dict)
    """Standard deviation over the seeds, by model; empty for a single seed."""
    protocol_version: int = 1
    """Version of the evaluation's implementation; 1 in records without this field."""

    @property
    def spread(self) -> str:
        """What the numbers of the table are, in words."""
        return f"mean ± standard deviation of {self.seeds} seeds" if self.seeds > 1 else "one seed"

    @property
    def full_protocol(self) -> str:
        """The protocol, with its version unless that is 1."""
        if self.protocol_version == 1:
            return self.protocol
        return f"Protocol version {self.protocol_version}: {self.protocol}"

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, what: str) -> "Measurement":
        """Build a measurement from its dict.

        Raises:
            WeightError: If a field is missing or invalid, or the numbers are inconsistent.
        """
        if isinstance(raw, dict):  # a newer pcd_hub may have added fields
            raw = {key: raw[key] for key in raw if key in _MEASUREMENT}
        check_fields(raw, _MEASUREMENT, what=what)
        found = cls(**raw)
        spread = found.means.keys() if found.seeds > 1 else set()
        if found.subject not in found.means or found.stds.keys() != spread:
            raise WeightError(
                f"{what} is inconsistent: expected {found.subject!r} among its means, and "
                "standard deviations of all models exactly if there were several seeds"
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
    "protocol_version": optional(whole(1, 2**53)),
}
