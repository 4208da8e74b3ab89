"""Results tables: scores of several models on the same data, seed by seed."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from pcd_hub.data.sources.uris import is_dir
from pcd_hub.errors import DataError
from pcd_hub.weights.cards.results import results_table
from pcd_hub.weights.manifest import write_json
from pcd_hub.weights.record import Measurement

FILE = "evaluation.json"

COMPARABLE = ("task", "dataset", "protocol_version", "protocol", "images", "units")
"""Fields of an :class:`Evaluation` that must agree for its scores to be compared."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """The scores of one model."""

    name: str
    metrics: dict[str, tuple[float, ...]]
    """One value per seed, by metric."""
    weights_sha256: str | None = None
    """sha256 of the weights file if this is a pcd_hub weight, otherwise None."""
    details: dict[str, Any] = field(default_factory=dict)
    """Scores that are stored outside the table, e.g. per class."""
    architecture: str = ""
    """Name of the timm architecture; empty if it is unknown."""
    predictions: tuple[UInt8[Tensor, "_ _"], ...] = ()
    """Predicted masks of the test images at the first seed; empty if none are predicted."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One table, models by metrics. Higher is better for every metric.

    Stored as ``evaluation.json`` in a run's folder; :func:`join` merges several.
    """

    task: str
    """Name of the evaluation, e.g. "linear segmentation probe"."""
    dataset: str
    protocol: str
    """One sentence with every choice that affects the scores."""
    command: str
    """The command that reproduces this table."""
    images: int
    """Number of images that were scored."""
    seeds: tuple[int, ...]
    units: dict[str, str]
    """Unit by metric; the primary metric comes first."""
    scores: dict[str, dict[str, tuple[float, ...]]]
    """One number per seed, by model and metric."""
    weights_sha256: dict[str, str] = field(default_factory=dict)
    """sha256 of the weights file by model; pcd_hub weights only."""
    details: dict[str, Any] = field(default_factory=dict)
    """Facts outside the table: times, hardware, versions, scores per class."""
    protocol_version: int = 1
    """Version of the evaluation's implementation. Scores of different versions are never compared.
    Files without this field are of version 1."""
    data_sha256: str = ""
    """sha256 of the fingerprints of the training and test images; empty if it is unknown."""

    def save(self, folder: Path) -> Path:
        """Write ``evaluation.json`` atomically; create the folder if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        write_json(path, dataclasses.asdict(self))
        return path

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Load a table from its file or its folder.

        Raises:
            DataError: If there is no table, or a score is missing or not finite.
        """
        file = path / FILE if is_dir(path) else path
        try:
            raw = json.loads(file.read_text())
            scores = {
                model: {metric: tuple(map(float, values)) for metric, values in row.items()}
                for model, row in raw["scores"].items()
            }
            check_version(raw.get("protocol_version", 1))
            seeds = tuple(map(int, raw["seeds"]))
            table = cls(**raw | {"scores": scores, "seeds": seeds})
            complete = bool(scores) and all(table._is_complete(row) for row in scores.values())
        except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise DataError(
                f"{file} is not an evaluation ({type(error).__name__}: {error})"
            ) from error
        if not complete:
            raise DataError(
                f"{file} is incomplete: expected a finite score of every model for every metric "
                "and seed"
            )
        return table

    def _is_complete(self, row: Mapping[str, tuple[float, ...]]) -> bool:
        return self._fits(row) and all(map(math.isfinite, itertools.chain(*row.values())))

    def _fits(self, row: Mapping[str, tuple[float, ...]]) -> bool:
        counts = {metric: len(values) for metric, values in row.items()}
        return counts == dict.fromkeys(self.units, len(self.seeds))

    def with_scores(self, scores: ModelScores) -> "Evaluation":
        """Return the table with the scores of one more model."""
        return self.with_model(
            scores.name,
            scores.metrics,
            weights_sha256=scores.weights_sha256,
            details=scores.details,
        )

    def with_model(
        self,
        name: str,
        row: dict[str, tuple[float, ...]],
        *,
        weights_sha256: str | None,
        details: dict[str, Any],
    ) -> "Evaluation":
        """Return the table with one more row.

        Raises:
            DataError: If the row lacks a metric of the table, or a score of one of its seeds.
        """
        if not self._fits(row):
            counts = {metric: len(values) for metric, values in row.items()}
            raise DataError(
                f"the scores of {name} ({counts}) do not fit into the table: expected one for each "
                f"of its seeds {self.seeds} and metrics ({', '.join(self.units)}); "
                "probe.score(name, table.seeds) has them"
            )
        known = {name: weights_sha256} if weights_sha256 else {}
        return dataclasses.replace(
            self,
            scores=self.scores | {name: row},
            weights_sha256=self.weights_sha256 | known,
            details=self.details | {"models": self.details.get("models", {}) | {name: details}},
        )

    def measurements(self, subject: str, name: str) -> dict[str, Measurement]:
        """Return one measurement per metric, by a short name, for a weight's record.

        Args:
            subject: Row label of that weight, which may be a local folder.
            name: The weight's name. The hash is appended to the label of any other weight with
                that name.
        """
        other = f"{name} (weights {self.weights_sha256.get(name, 'unknown')[:8]})"
        named = {model: other if model == name else model for model in self.scores}
        columns = self._columns({**named, subject: name}, name)
        return {_short_name(column): column for column in columns}

    def _columns(self, named: Mapping[str, str], subject: str) -> list[Measurement]:
        """Return one measurement per metric, with models labelled as in ``named``."""
        rows = {named[model]: row for model, row in self.scores.items()}
        return [
            Measurement(
                task=self.task,
                dataset=self.dataset,
                metric=metric,
                unit=unit,
                images=self.images,
                seeds=len(self.seeds),
                protocol=self.protocol,
                protocol_version=self.protocol_version,
                command=self.command,
                subject=subject,
                means={model: mean(row[metric]) for model, row in rows.items()},
                stds={model: deviation(row[metric]) for model, row in rows.items()}
                if len(self.seeds) > 1
                else {},
            )
            for metric, unit in self.units.items()
        ]

    def table(self) -> str:
        """Format as Markdown: a row per model, the best score in bold, protocol and command."""
        return results_table(self._columns({model: model for model in self.scores}, ""))


def check_version(version: object) -> None:
    """Check the version of a protocol.

    Raises:
        ValueError: If it is not an integer >= 1.
    """
    if type(version) is not int or version < 1:
        raise ValueError(f"protocol_version {version!r}: expected an integer >= 1")


def data_sha256(*fingerprints: str) -> str:
    """Return one hash of the fingerprints of several sets of images, in their order."""
    return hashlib.sha256("\n".join(fingerprints).encode(errors="surrogateescape")).hexdigest()


def join(tables: Sequence[Evaluation]) -> Evaluation:
    """Merge runs of the same evaluation on different models or seeds into one table.

    Raises:
        DataError: If the runs differ in anything else, a model was scored twice at the same seed,
            or the models' seeds differ.
    """
    first = tables[0]
    _check_comparable(tables)
    by_seed = _rows_by_seed(tables)
    seeds = sorted(by_seed[next(iter(by_seed))])
    for model, rows in by_seed.items():
        if sorted(rows) != seeds:
            raise DataError(
                f"{first.task}: {model} has seeds {sorted(rows)}, expected {seeds} as of the first "
                "model; run the missing ones"
            )
    return dataclasses.replace(
        first,
        command="; ".join(dict.fromkeys(table.command for table in tables)),
        seeds=tuple(seeds),
        scores={
            model: {metric: tuple(rows[s][metric] for s in seeds) for metric in first.units}
            for model, rows in by_seed.items()
        },
        weights_sha256={k: v for table in tables for k, v in table.weights_sha256.items()},
        details={"of": [table.details for table in tables]},
        data_sha256=next((t.data_sha256 for t in tables if t.data_sha256), ""),
    )


def _check_comparable(tables: Sequence[Evaluation]) -> None:
    for what in COMPARABLE:
        one = getattr(tables[0], what)
        for table in tables[1:]:
            if (two := getattr(table, what)) != one:
                words = what.replace("_", " ")
                raise DataError(f"tables of {table.task} differ in {words}: {one!r} and {two!r}")
    known = list(dict.fromkeys(table.data_sha256 for table in tables if table.data_sha256))
    if len(known) > 1:
        raise DataError(
            f"tables of {tables[0].task} on {tables[0].dataset} are of different images (data "
            f"sha256 {known[0][:12]} and {known[1][:12]}); compare results on the same images"
        )


def _rows_by_seed(tables: Sequence[Evaluation]) -> dict[str, dict[int, dict[str, float]]]:
    by_seed: dict[str, dict[int, dict[str, float]]] = {}
    weights: dict[str, str | None] = {}
    for table, model in ((t, model) for t in tables for model in t.scores):
        sha256 = table.weights_sha256.get(model)
        if weights.setdefault(model, sha256) != sha256:
            raise DataError(
                f"{model} is not the same weight in all tables of {table.task} (sha256 "
                f"{str(weights[model])[:12]} and {str(sha256)[:12]}); measure one of them again"
            )
        rows = by_seed.setdefault(model, {})
        for number, seed in enumerate(table.seeds):
            if seed in rows:
                raise DataError(
                    f"{model} was scored twice in {table.task} at seed {seed}; leave one run out"
                )
            rows[seed] = {name: values[number] for name, values in table.scores[model].items()}
    return by_seed


def mean(values: tuple[float, ...]) -> float:
    """Return the mean, rounded to the two digits that tables show."""
    return round(statistics.fmean(values), 2)


def deviation(values: tuple[float, ...]) -> float:
    """Return the sample standard deviation, rounded to two digits; 0 for a single value."""
    return round(statistics.stdev(values), 2) if len(values) > 1 else 0.0


def finite_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Drop scores that are not finite, e.g. of a class that does not occur."""
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _short_name(column: Measurement) -> str:
    """Return a readable name that is unique to task, protocol version, data set and metric."""
    words = (column.task[:40], column.dataset[-30:], column.metric)
    facts: tuple[object, ...] = (column.task, column.dataset, column.metric)
    if column.protocol_version > 1:  # names of version 1 are in records
        facts += (column.protocol_version,)
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()
    readable = re.sub(r"[^a-z0-9]+", "_", " ".join(words).lower()).strip("_")
    return f"{readable}_{digest[:6]}"
