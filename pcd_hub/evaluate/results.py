"""What an evaluation measured: the scores of several models on the same data, seed by seed."""

import dataclasses
import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcd_hub.data.uris import is_dir
from pcd_hub.errors import DataError
from pcd_hub.weights.card import results_table
from pcd_hub.weights.record import Measurement

FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One table: models by metrics. Of every metric more is better.

    Written into a run's folder; ``recipes/compare.py`` joins several.
    """

    task: str
    """As "linear segmentation probe"."""
    dataset: str
    protocol: str
    """One sentence with every choice that changes the numbers."""
    command: str
    """What gives this table again."""
    images: int
    """How many images the scores were taken on."""
    seeds: tuple[int, ...]
    units: dict[str, str]
    """By metric; the one to judge by comes first."""
    scores: dict[str, dict[str, tuple[float, ...]]]
    """By model and metric, one number a seed."""
    weights_sha256: dict[str, str] = field(default_factory=dict)
    """Of the weights file of a model, if it is one of ours."""
    details: dict[str, Any] = field(default_factory=dict)
    """Beside the table: times, hardware, versions, scores by class."""

    def save(self, folder: Path) -> Path:
        """Write ``evaluation.json``, whole or not at all."""
        path = folder / FILE
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n")
        return draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read one, from its file or the folder it lies in.

        Raises:
            DataError: If there is none, or it is not whole.
        """
        file = path / FILE if is_dir(path) else path
        try:
            found = cls(**json.loads(file.read_text()))
            models = {
                model: {metric: tuple(map(float, found.scores[model][metric])) for metric in row}
                for model, row in found.scores.items()
            }
            whole = all(
                set(row) == set(found.units)
                and all(len(values) == len(found.seeds) for values in row.values())
                and all(math.isfinite(value) for values in row.values() for value in values)
                for row in models.values()
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is no evaluation ({type(error).__name__}: {error})") from error
        if not models or not whole:
            raise DataError(f"{file} is not whole: every model needs every metric at every seed")
        return dataclasses.replace(found, scores=models, seeds=tuple(found.seeds))

    def with_model(
        self,
        name: str,
        row: dict[str, tuple[float, ...]],
        *,
        weights_sha256: str | None,
        details: dict[str, Any],
    ) -> "Evaluation":
        """The same with one more row."""
        known = {name: weights_sha256} if weights_sha256 else {}
        return dataclasses.replace(
            self,
            scores=self.scores | {name: row},
            weights_sha256=self.weights_sha256 | known,
            details=self.details | {"models": self.details.get("models", {}) | {name: details}},
        )

    def measurements(self, subject: str, name: str) -> dict[str, Measurement]:
        """One for each metric, as a weight's record holds them.

        Args:
            subject: The row of that weight; it may be called by a folder of this machine.
            name: What the record calls it. Another weight of that name gets its hash beside it.
        """
        other = f"{name} (weights {self.weights_sha256.get(name, 'unknown')[:8]})"
        named = {model: other if model == name else model for model in self.scores}
        columns = self._columns({**named, subject: name}, name)
        return {_short_name(column): column for column in columns}

    def _columns(self, named: Mapping[str, str], subject: str) -> list[Measurement]:
        """One for each metric, models called as in ``named``."""
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
        """As Markdown: a row a model, the best of every metric in bold, protocol and command."""
        return results_table(self._columns({model: model for model in self.scores}, ""))


def join(tables: Sequence[Evaluation]) -> Evaluation:
    """Several runs of the same evaluation as one table: other models, or other seeds.

    Raises:
        DataError: If they were not measured alike, a model was scored twice at a seed, or the
            models' seeds differ.
    """
    first = tables[0]
    _check_alike(tables)
    by_seed = _rows_by_seed(tables)
    seeds = sorted(by_seed[next(iter(by_seed))])
    for model, rows in by_seed.items():
        if sorted(rows) != seeds:
            raise DataError(
                f"{first.task}: {model} has the seeds {sorted(rows)}, another model {seeds}; "
                "run the missing ones"
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
    )


def _check_alike(tables: Sequence[Evaluation]) -> None:
    for what in ("task", "dataset", "protocol", "images", "units"):
        one = getattr(tables[0], what)
        for table in tables[1:]:
            if (two := getattr(table, what)) != one:
                raise DataError(f"two tables of {table.task} differ in {what}: {one!r} and {two!r}")


def _rows_by_seed(tables: Sequence[Evaluation]) -> dict[str, dict[int, dict[str, float]]]:
    by_seed: dict[str, dict[int, dict[str, float]]] = {}
    weights: dict[str, str | None] = {}
    for table, model in ((t, model) for t in tables for model in t.scores):
        sha256 = table.weights_sha256.get(model)
        if weights.setdefault(model, sha256) != sha256:
            raise DataError(
                f"{model} in two tables of {table.task} is two weights (sha256 "
                f"{str(weights[model])[:12]} and {str(sha256)[:12]}); measure one of them again"
            )
        rows = by_seed.setdefault(model, {})
        for number, seed in enumerate(table.seeds):
            if seed in rows:
                raise DataError(f"{model} stands twice in {table.task} at seed {seed}")
            rows[seed] = {name: values[number] for name, values in table.scores[model].items()}
    return by_seed


def mean(values: tuple[float, ...]) -> float:
    """Rounded to the two digits that the tables show."""
    return round(statistics.fmean(values), 2)


def deviation(values: tuple[float, ...]) -> float:
    """Of the sample; 0 for a single value."""
    return round(statistics.stdev(values), 2) if len(values) > 1 else 0.0


def finite_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """``scores`` without those that are no number, as of a class that does not occur."""
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _short_name(column: Measurement) -> str:
    """Readable, and another one for everything else that is measured."""
    words = (column.task[:40], column.dataset[-30:], column.metric)
    digest = hashlib.sha256(repr((column.task, column.dataset, column.metric)).encode()).hexdigest()
    readable = re.sub(r"[^a-z0-9]+", "_", " ".join(words).lower()).strip("_")
    return f"{readable}_{digest[:6]}"
