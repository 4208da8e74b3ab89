"""Render a lab's results as Markdown and JSON."""

import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcd_hub.files.markdown import escaped, table
from pcd_hub.files.write import atomic_write
from pcd_hub.train.lab.paired import RULE, Difference, paired_difference
from pcd_hub.train.lab.plan import Plan
from pcd_hub.train.lab.scores import (
    EvaluationScores,
    RowRuns,
    RowScores,
    all_seeds,
    collect_runs,
    collect_scores,
    reference_row,
)

LEGEND = (
    "±: sample standard deviation over the training seeds; after a difference, of the differences "
    f"at equal seeds. {RULE} Of many differences without an effect, one in twenty exceeds it. A "
    "row with a failed seed has no mean. Scores of a trained student are means over the seeds of "
    "the evaluation; a model that is not trained is scored once for each training seed."
)


def save_table(plan: Plan, folder: Path) -> str:
    """Write table.md and table.json, and return the Markdown."""
    runs, scores = collect_runs(plan, folder), collect_scores(plan, folder)
    seeds = all_seeds(plan, folder)
    text = render(plan, runs, scores, seeds)
    atomic_write(folder / "table.md", text + "\n")
    found = as_plain(plan, runs, scores)
    atomic_write(folder / "table.json", json.dumps(found, indent=2) + "\n")
    return text


def render(
    plan: Plan, runs: list[RowRuns], scores: list[EvaluationScores], seeds: tuple[int, ...]
) -> str:
    """Return the Markdown: one table of the runs, one for each evaluation, and the legend."""
    parts = [_runs_table(plan, runs), *(_scores_table(plan, one, seeds) for one in scores)]
    commits = sorted({commit for row in runs for commit in row.commits})
    note = f" The rows were trained by different commits: {', '.join(commits)}."
    return "\n\n".join([*parts, escaped(LEGEND) + escaped(note) * (len(commits) > 1)])


def as_plain(plan: Plan, runs: list[RowRuns], scores: list[EvaluationScores]) -> dict[str, Any]:
    """Return everything as plain JSON containers."""
    return {
        "baseline": plan.baseline,
        "rule": RULE,
        "rows": [dataclasses.asdict(row) for row in runs],
        "evaluations": [
            {
                **{
                    key: getattr(one, key)
                    for key in ("name", "task", "dataset", "protocol", "images", "units")
                },
                "rows": {row.name: plain_row(one, row.name, plan.baseline) for row in plan.rows},
            }
            for one in scores
        ],
    }


def mean_and_std(values: Mapping[int, float]) -> tuple[float, float | None]:
    """Return the mean over the seeds and the sample standard deviation, None for one seed."""
    found = list(values.values())
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None


def difference_from(
    baseline: str, scores: EvaluationScores, row: str, metric: str
) -> Difference | None:
    """Compare a row with the baseline; None for the baseline, and if a seed of either failed."""
    own, other = (scores.rows.get(name, RowScores()) for name in (row, baseline))
    if row == baseline or own.failed or other.failed:
        return None
    return paired_difference(own.by_seed(metric), other.by_seed(metric))


def plain_row(scores: EvaluationScores, row: str, baseline: str) -> dict[str, Any]:
    """Return a row's scores and its differences from the baseline as plain JSON containers."""
    own = scores.rows.get(row, RowScores())
    metrics = {}
    for metric in scores.units if own.values else ():
        mean, std = mean_and_std(own.by_seed(metric))
        difference = difference_from(baseline, scores, row, metric)
        metrics[metric] = {
            "by_seed": own.by_seed(metric),
            **({} if own.failed else {"mean": mean, "std": std}),
            "difference": difference
            and {**dataclasses.asdict(difference), "verdict": difference.verdict},
        }
    return {"failed": own.failed, "metrics": metrics}


def _runs_table(plan: Plan, runs: list[RowRuns]) -> str:
    reference = reference_row(plan)
    heads = (
        *("row", f"differs from {reference.name} by" if reference else "model"),
        *("state", "steps", "images seen", "seconds per step", "hours"),
    )
    return table(tuple(map(escaped, heads)), [_run_cells(row) for row in runs])


def _run_cells(row: RowRuns) -> tuple[object, ...]:
    seconds, hours = row.seconds_per_step, None
    if seconds is not None and row.steps is not None:
        hours = f"{seconds * row.steps / 3600:.2f}"
    return (
        row.name,
        row.options,
        _states(row.states),
        *("" if value is None else f"{value:,}" for value in (row.steps, row.images_seen)),
        "" if seconds is None else f"{seconds:.3g}",
        hours or "",
    )


def _states(states: Mapping[int, str]) -> str:
    """Join the states of the seeds: "done (seeds 0, 1), failed: REASON (seed 2)"."""
    seeds: dict[str, list[str]] = {}
    for seed, state in states.items():
        seeds.setdefault(state, []).append(str(seed))
    return ", ".join(
        f"{state} ({'seeds' if len(names) > 1 else 'seed'} {', '.join(names)})"
        for state, names in seeds.items()
    )


def _scores_table(plan: Plan, scores: EvaluationScores, seeds: tuple[int, ...]) -> str:
    heads = ["row"]
    for metric, unit in scores.units.items():
        heads += [f"{metric} ({unit})" if unit else metric, f"minus {plan.baseline}"]
    rows = [_score_cells(plan, scores, row.name, seeds) for row in plan.rows]
    title = f"**{escaped(scores.name)}**: {escaped(scores.task)} on {escaped(scores.dataset)}"
    protocol = f"{title}, {scores.images} images. {escaped(scores.protocol)}."
    return f"{protocol}\n\n{table(tuple(map(escaped, heads)), rows)}"


def _score_cells(
    plan: Plan, scores: EvaluationScores, row: str, seeds: tuple[int, ...]
) -> tuple[object, ...]:
    own = scores.rows.get(row, RowScores())
    cells = [row]
    for metric in scores.units:
        cells.append(value_cell(own, metric, seeds))
        cells.append(_difference_cell(difference_from(plan.baseline, scores, row, metric)))
    return tuple(cells)


def value_cell(row: RowScores, metric: str, seeds: tuple[int, ...]) -> str:
    """Return mean and standard deviation of a row, or what failed."""
    values = row.by_seed(metric)
    if row.failed:
        listed = {seed: f"{value:.2f}" for seed, value in values.items()}
        listed |= {seed: f"failed: {reason}" for seed, reason in row.failed.items()}
        return ", ".join(f"seed {seed} {listed[seed]}" for seed in sorted(listed))
    if not values:
        return "not yet"
    mean, std = mean_and_std(values)
    spread = "" if std is None else f" ± {std:.2f}"
    missing = f" (n = {len(values)})" if len(values) < len(seeds) else ""
    return f"{mean:.2f}{spread}{missing}"


def _difference_cell(difference: Difference | None) -> str:
    if difference is None:
        return ""
    spread = "" if difference.std is None else f" ± {difference.std:.2f}"
    noted = difference.verdict not in {"higher", "lower"}
    return f"{difference.mean:+.2f}{spread}" + f" ({difference.verdict})" * noted
