"""Collect the states and scores of all rows from a lab's folder."""

import itertools
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcd_hub.errors import PCDHubError
from pcd_hub.evaluate.results import COMPARABLE, FILE, Evaluation
from pcd_hub.train.configs.fields import as_typed
from pcd_hub.train.configs.files import plain, read_fields, with_fields
from pcd_hub.train.configs.flat import flat
from pcd_hub.train.lab.jobs import ROWS, options_file, read_state, row_folder
from pcd_hub.train.lab.plan import SET_BY_LAB, TRAINING, Plan, Row

NOT_COMPARABLE = "scored under another protocol"


@dataclass(kw_only=True)
class RowScores:
    """Scores of one row in one evaluation."""

    values: dict[int, dict[str, float]] = field(default_factory=dict)
    """By training seed and metric: the mean over the seeds of the evaluation."""
    failed: dict[int, str] = field(default_factory=dict)
    """By training seed: why there is no score."""

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return the score of a metric by training seed."""
        return {seed: values[metric] for seed, values in self.values.items()}


@dataclass(kw_only=True)
class EvaluationScores:
    """Scores of all rows in one evaluation."""

    name: str
    task: str
    dataset: str
    protocol_version: int
    protocol: str
    images: int
    units: dict[str, str]
    """Unit by metric; the primary metric comes first."""
    rows: dict[str, RowScores]


@dataclass(frozen=True, kw_only=True)
class RowRuns:
    """The runs of one row."""

    name: str
    options: str
    """The model that is evaluated, or the options that differ from those of the reference row."""
    states: dict[int, str]
    """By training seed: "done", "started", "not started" or "failed: REASON"."""
    steps: int | None
    images_seen: int | None
    seconds_per_step: float | None
    """Mean over the seeds of the median over the run."""
    commits: tuple[str, ...]


def all_seeds(plan: Plan, folder: Path) -> tuple[int, ...]:
    """Return the seeds of the list, and others that have been run."""
    names = (path.name.removeprefix("seed-") for path in folder.glob(f"{ROWS}/*/seed-*"))
    return tuple(sorted({*plan.seeds, *(int(name) for name in names if name.isdecimal())}))


def collect_scores(plan: Plan, folder: Path) -> list[EvaluationScores]:
    """Read the results of every evaluation; those of the baseline state what is comparable."""
    rows = sorted(plan.rows, key=lambda row: row.name != plan.baseline)
    seeds = all_seeds(plan, folder)
    found: dict[str, EvaluationScores] = {}
    for evaluation, row, seed in itertools.product(plan.evaluations, rows, seeds):
        job = row_folder(folder, row.name, seed) / evaluation.name
        done = read_state(job).get("state") == "done"
        for file in sorted(job.rglob(FILE)) if done else ():
            add_scores(found, row.name, seed, evaluation.name, file)
    for name, scores in found.items():
        for row in rows:
            own = scores.rows.setdefault(row.name, RowScores())
            own.failed |= _failures(row, name.partition("/")[0], seeds, folder)
    return list(found.values())


def collect_runs(plan: Plan, folder: Path) -> list[RowRuns]:
    """Read the state, options and costs of every row."""
    reference = reference_row(plan)
    return [_runs(row, reference, plan, folder) for row in plan.rows]


def reference_row(plan: Plan) -> Row | None:
    """Return the row whose options the others are described by: the baseline if it is trained."""
    trained = [row for row in plan.rows if row.distilled]
    return next((row for row in trained if row.name == plan.baseline), next(iter(trained), None))


def add_scores(
    found: dict[str, EvaluationScores], row: str, seed: int, evaluation: str, file: Path
) -> None:
    """Add the scores in ``file`` to those of its evaluation; the first states what is comparable.

    Args:
        found: Scores by evaluation, which this changes.
        row: Name of the row.
        seed: Training seed of the row.
        evaluation: Name of the evaluation.
        file: The row's evaluation.json.
    """
    place = file.parent
    name = evaluation if place.name == evaluation else f"{evaluation}/{place.name}"
    try:
        table = Evaluation.load(file)
    except PCDHubError as error:
        if name in found:
            found[name].rows.setdefault(row, RowScores()).failed[seed] = str(error)
        return
    facts = {key: getattr(table, key) for key in COMPARABLE}
    scores = found.setdefault(name, EvaluationScores(name=name, rows={}, **facts))
    own = scores.rows.setdefault(row, RowScores())
    if any(getattr(scores, key) != value for key, value in facts.items()):
        own.failed[seed] = NOT_COMPARABLE
        return
    (metrics,) = table.scores.values()
    own.values[seed] = {metric: statistics.fmean(values) for metric, values in metrics.items()}


def _failures(row: Row, evaluation: str, seeds: tuple[int, ...], folder: Path) -> dict[int, str]:
    failed = {}
    for seed in seeds:
        place = row_folder(folder, row.name, seed)
        training, own = read_state(place / TRAINING), read_state(place / evaluation)
        if row.model is None and training.get("state") == "failed":
            failed[seed] = f"training: {training['reason']}"
        elif own.get("state") == "failed":
            failed[seed] = own["reason"]
    return failed


def _runs(row: Row, reference: Row | None, plan: Plan, folder: Path) -> RowRuns:
    places = {seed: row_folder(folder, row.name, seed) for seed in all_seeds(plan, folder)}
    records = [_record(place / TRAINING) for place in places.values()] if not row.model else []
    records = [record for record in records if record]
    speeds = [record["seconds_per_step"] for record in records if record["seconds_per_step"]]
    return RowRuns(
        name=row.name,
        options=row.model or _difference(row, reference, plan, folder),
        states={seed: _state(row, plan, place) for seed, place in places.items()},
        steps=records[0]["steps"] if records else None,
        images_seen=records[0]["images_seen"] if records else None,
        seconds_per_step=statistics.fmean(speeds) if speeds else None,
        commits=tuple(sorted({record["commit"] for record in records})),
    )


def _state(row: Row, plan: Plan, place: Path) -> str:
    """Summarise the jobs of a row at one seed."""
    names = [*([] if row.model else [TRAINING]), *(one.name for one in plan.evaluations)]
    states = {name: read_state(place / name) for name in names}
    for name, state in states.items():
        if state.get("state") == "failed":
            return f"failed: {name}: {state['reason']}"
    kinds = {state.get("state", "not started") for state in states.values()}
    return kinds.pop() if len(kinds) == 1 else "started"


def _record(training: Path) -> dict[str, Any] | None:
    """Return length, cost and commit of a finished training."""
    if read_state(training).get("state") != "done":
        return None
    try:
        record = json.loads((training / "record.json").read_text())
        lines = (training / "metrics.jsonl").read_text().splitlines()
        speeds = [json.loads(line)["images_per_s"] for line in lines]
        batch, code = record["config"]["optim"]["global_batch_size"], record["code"]
        return {
            "steps": record["steps"],
            "images_seen": record["images_seen"],
            "seconds_per_step": batch / statistics.median(speeds) if speeds else None,
            "commit": f"{str(code.get('commit'))[:12]}{' (changed)' * bool(code.get('dirty'))}",
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _difference(row: Row, reference: Row | None, plan: Plan, folder: Path) -> str:
    """Describe the options in which a row differs from the reference row, as they were run."""
    if reference is None or row.name == reference.name:
        return ""
    own, other = (_options(each, plan, folder) for each in (row, reference))
    if not row.distilled:  # another recipe, with other fields of the method
        own = {k: v for k, v in own.items() if k in other or k == "method.labels"}
        own.pop("method.temperature", None)
        own.pop("method.head_width", None)
    changed = {name: value for name, value in own.items() if value != other.get(name)}
    return ", ".join(f"{name} {as_typed(_joined(value))}" for name, value in changed.items())


def _options(row: Row, plan: Plan, folder: Path) -> Mapping[str, Any]:
    """Return the options with which a row was run, or will be."""
    config = row.config
    for seed in all_seeds(plan, folder):
        file = options_file(row_folder(folder, row.name, seed) / TRAINING)
        if file.is_file():
            kind = type(config)()
            config = with_fields(kind, read_fields(kind, str(file)))
            break
    return {k: v for k, v in flat(plain(config)).items() if k not in SET_BY_LAB}


def _joined(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
