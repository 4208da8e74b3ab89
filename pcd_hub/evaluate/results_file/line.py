"""One line of a results file: the scores of one model in one evaluation."""

import dataclasses
import json
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from pcd_hub.errors import DataError, WeightError
from pcd_hub.evaluate.results import Evaluation, ModelScores, deviation, mean
from pcd_hub.files.strict_json import (
    COUNT,
    FINITE,
    OBJECT,
    SHA256,
    TEXT,
    check_fields,
    matching,
    optional,
    or_null,
    parse_json,
    printable,
    several,
    whole,
)

_MAX_BYTES = 2**20
_MAX_SEEDS = 10_000
_ROUNDING = 0.011
"""Largest difference of a stated mean or deviation, which have two digits, from that of the
values."""


evaluation_of = attrgetter("task", "data_sha256", "protocol_version", "protocol")
"""What a line, or a table, shares with those of the same evaluation on the same images."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of a model."""

    unit: str
    mean: float
    """Mean over the seeds, rounded to two digits."""
    std: float | None
    """Sample standard deviation over the seeds, rounded to two digits; None for one seed."""
    n: int
    """Number of seeds."""
    values: tuple[float, ...]
    """One value per seed."""


@dataclass(frozen=True, kw_only=True)
class ResultLine:
    """The scores of one model in one evaluation, as a line of a results file."""

    model: str
    """Name of the model, as in ``pcd-hub probe``."""
    weights_sha256: str | None
    """sha256 of the weights file, if it is known."""
    architecture: str
    task: str
    dataset: str
    data_sha256: str
    """sha256 of the fingerprints of the training and test images."""
    images: int
    """Number of images that were scored."""
    protocol_version: int
    protocol: str
    seeds: tuple[int, ...]
    metrics: dict[str, Metric]
    """The primary metric comes first."""
    command: str
    versions: dict[str, Any]
    """Versions of pcd_hub, Python and libraries."""
    created: str
    """Time of the evaluation in UTC, as ISO 8601."""

    @property
    def identity(self) -> str:
        """The sha256 of the weights if it is known, otherwise the name."""
        return self.weights_sha256 or self.model

    def encode(self) -> bytes:
        """Return the line, with its newline.

        Raises:
            DataError: If :func:`parse_line` would not accept it, e.g. for a score that is not
                finite.
        """
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False)
        raw = text.encode("utf-8", "replace")  # a file name may hold bytes that are no text
        parse_line(raw, what=f"the result of {self.model}")
        return raw + b"\n"

    def table(self) -> Evaluation:
        """Return the line as a table with one model."""
        return Evaluation(
            task=self.task,
            dataset=self.dataset,
            protocol=self.protocol,
            protocol_version=self.protocol_version,
            data_sha256=self.data_sha256,
            command=self.command,
            images=self.images,
            seeds=self.seeds,
            units={name: metric.unit for name, metric in self.metrics.items()},
            scores={self.model: {name: metric.values for name, metric in self.metrics.items()}},
            weights_sha256={self.model: self.weights_sha256} if self.weights_sha256 else {},
            details={"models": {self.model: self.facts()}},
        )

    def facts(self) -> dict[str, Any]:
        """Return the facts outside the table."""
        names = ("architecture", "versions", "created")
        return {name: getattr(self, name) for name in names}


_METRIC = {
    "unit": TEXT,
    "mean": FINITE,
    "std": or_null(FINITE),
    "n": whole(1, _MAX_SEEDS),
    "values": several(FINITE, 1, _MAX_SEEDS),
}
_LINE = {
    **dict.fromkeys(("model", "architecture", "task", "dataset", "protocol", "command"), TEXT),
    "weights_sha256": or_null(SHA256),
    "data_sha256": SHA256,
    "images": COUNT,
    "protocol_version": optional(whole(1, 2**53)),
    "seeds": several(whole(0, 2**32 - 1), 1, _MAX_SEEDS),
    "metrics": OBJECT,
    "versions": OBJECT,
    "created": matching(r"[0-9T:.+Z-]{10,40}", "a time as ISO 8601"),
}


def result_line(table: Evaluation, scores: ModelScores, sha256: str | None) -> ResultLine:
    """Return the scores of one model of a table as a line.

    Args:
        table: The table; its details hold the provenance.
        scores: The scores of the model.
        sha256: sha256 of the weights file, if it is known.
    """
    versions = table.details.get("versions", {})
    return ResultLine(
        model=scores.name,
        weights_sha256=sha256,
        architecture=scores.architecture,
        task=table.task,
        dataset=table.dataset,
        data_sha256=table.data_sha256,
        images=table.images,
        protocol_version=table.protocol_version,
        protocol=table.protocol,
        seeds=table.seeds,
        metrics={
            name: Metric(
                unit=unit,
                mean=mean(values := scores.metrics[name]),
                std=deviation(values) if len(values) > 1 else None,
                n=len(values),
                values=tuple(values),
            )
            for name, unit in table.units.items()
        },
        command=table.command,
        versions={"pcd_hub": table.details.get("code", {}).get("pcd_hub"), **versions},
        created=str(table.details.get("created", "")),
    )


def parse_line(raw: bytes, *, what: str) -> ResultLine:
    """Read a line; fields of a newer version are left out.

    Args:
        raw: The line.
        what: Name of the line in errors.

    Raises:
        DataError: If it is not a result, or its numbers are inconsistent.
    """
    try:
        found = _known(parse_json(raw, what=what, max_bytes=_MAX_BYTES), _LINE)
        check_fields(found, _LINE, what=what)
        metrics = {name: _known(one, _METRIC) for name, one in found["metrics"].items()}
        for name, one in metrics.items():
            check_fields(one, _METRIC, what=f"{what}, {printable(name)}")
    except WeightError as error:
        raise DataError(f"{error}; correct or remove the line") from error
    built = {name: _metric(one) for name, one in metrics.items()}
    facts: dict[str, Any] = {"protocol_version": 1, "weights_sha256": None, **found}
    line = ResultLine(**(facts | {"metrics": built, "seeds": tuple(found["seeds"])}))
    if not built or not all(_is_consistent(one, line) for one in built.values()):
        raise DataError(
            f"{what} is inconsistent: expected metrics with one value for each of its "
            f"{len(line.seeds)} seeds, with their mean and standard deviation; correct or remove "
            "the line"
        )
    return line


def _metric(found: dict[str, Any]) -> Metric:
    return Metric(
        unit=found["unit"],
        mean=float(found["mean"]),
        std=None if found.get("std") is None else float(found["std"]),
        n=found["n"],
        values=tuple(map(float, found["values"])),
    )


def _known(found: Any, fields: dict[str, Any]) -> Any:
    return {k: found[k] for k in found if k in fields} if isinstance(found, dict) else found


def _is_consistent(metric: Metric, line: ResultLine) -> bool:
    values, spread = metric.values, metric.std
    if not metric.n == len(values) == len(line.seeds) == len(set(line.seeds)):
        return False
    if (spread is None) != (len(values) == 1) or abs(metric.mean - mean(values)) > _ROUNDING:
        return False
    return spread is None or abs(spread - deviation(values)) <= _ROUNDING
