"""Collect the scores of a comparison, and render them as Markdown and JSON."""

import dataclasses
import json
from typing import Any

from pcd_hub.evaluate.results import FILE
from pcd_hub.files.markdown import escaped, table
from pcd_hub.files.write import atomic_write
from pcd_hub.train.lab.jobs import read_state
from pcd_hub.train.lab.paired import RULE, Difference
from pcd_hub.train.lab.scores import EvaluationScores, RowScores, add_scores
from pcd_hub.train.lab.table import difference_from, plain_row, value_cell
from pcd_hub.train.worth.plan import Comparison, share_name
from pcd_hub.train.worth.verdict import RULES, verdict
from pcd_hub.weights.record import named_share

LEGEND = (
    "±: sample standard deviation over the seeds. A difference is the mean over the seeds of the "
    "scores at equal seeds, which share labels, new layers and the order of the images, with its "
    f"95 % interval. {RULE} Of many differences without an effect, one in twenty exceeds it. A "
    "model with a failed seed has no mean."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """All scores so far, by share of the labels in percent."""

    comparison: Comparison
    scores: dict[float, EvaluationScores]
    checks: list[str]
    """Sentences on whether test images were distilled on."""

    @property
    def units(self) -> dict[str, str]:
        """Unit by metric, the primary one first; empty as long as there is no score."""
        return next((one.units for one in self.scores.values()), {})

    @property
    def dataset(self) -> str:
        """Name of the data set, without a share of the labels; empty before the first score."""
        names = (
            one.dataset.removesuffix(named_share("", share / 100))
            for share, one in self.scores.items()
        )
        return next(names, "")

    def row(self, share: float, label: str) -> RowScores:
        """Return the scores of a model at a share."""
        return self.scores[share].rows[label] if share in self.scores else RowScores()

    def difference(self, share: float, label: str, metric: str) -> Difference | None:
        """Return the paired difference from the first model; None for itself or after a failure."""
        if share not in self.scores:
            return None
        return difference_from(self.comparison.baseline, self.scores[share], label, metric)

    def verdicts(self) -> dict[str, str]:
        """Return one sentence for each model but the first."""
        metric, baseline = next(iter(self.units), ""), self.comparison.baseline
        others = [label for label in self.comparison.models if label != baseline]
        folders = [self.comparison.job(*run).folder for run in self.comparison.runs()]
        finished = sum(read_state(one).get("state") in {"done", "failed"} for one in folders)
        if finished < len(folders):
            why = f"{finished} of {len(folders)} fine-tunings are finished"
            return {label: f"No verdict on {label} yet: {why}." for label in others}
        named = f"{metric} ({self.units[metric]})" if metric else "score"
        return {
            label: verdict(
                label,
                baseline,
                {
                    share: self.difference(share, label, metric)
                    for share in self.comparison.options.shares
                },
                metric=named,
            )
            for label in others
        }


def collect(comparison: Comparison, checks: list[str]) -> Result:
    """Read the scores of all finished fine-tunings."""
    scores: dict[float, EvaluationScores] = {}
    for share in comparison.options.shares:
        found: dict[str, EvaluationScores] = {}
        failed: dict[str, dict[int, str]] = {label: {} for label in comparison.models}
        for label in comparison.models:
            for seed in comparison.seeds:
                folder = comparison.job(label, share, seed).folder
                state = read_state(folder)
                if state.get("state") == "done":
                    add_scores(found, label, seed, share_name(share), folder / FILE)
                elif state.get("state") == "failed":
                    failed[label][seed] = state["reason"]
        for one in found.values():
            for label, reasons in failed.items():
                one.rows.setdefault(label, RowScores()).failed |= reasons
            scores[share] = one
    return Result(comparison=comparison, scores=scores, checks=checks)


def save(result: Result) -> str:
    """Write worth.md and worth.json, and return the text to print."""
    folder = result.comparison.folder
    tables = [_table(result, metric) for metric in result.units]
    sentences = [escaped(text) for text in result.verdicts().values()]
    notes = [escaped(text) for text in (_budget(result), f"{LEGEND} {RULES}", *result.checks)]
    protocols = [
        f"{share:g} % of the labels: {one.protocol}." for share, one in result.scores.items()
    ]
    title = _title(result)
    parts = [f"# {title}", *sentences, *tables, *notes, *map(escaped, protocols)]
    atomic_write(folder / "worth.md", "\n\n".join(parts) + "\n")
    atomic_write(folder / "worth.json", json.dumps(as_plain(result), indent=2) + "\n")
    failures, verdicts = _failures(result), result.verdicts().values()
    return "\n\n".join([title, *tables[:1], *failures, _budget(result), *verdicts])


def as_plain(result: Result) -> dict[str, Any]:
    """Return everything as plain JSON containers."""
    comparison = result.comparison
    one = next(iter(result.scores.values()), None)
    return {
        "data": comparison.options.data,
        "task": one.task if one else comparison.task,
        "dataset": result.dataset,
        "protocol": {f"{share:g}": each.protocol for share, each in result.scores.items()},
        "metric": next(iter(result.units), ""),
        "baseline": comparison.baseline,
        "models": comparison.models,
        "seeds": list(comparison.seeds),
        "shares": {
            f"{share:g}": {
                label: plain_row(each, label, comparison.baseline) for label in comparison.models
            }
            for share, each in result.scores.items()
        },
        "verdicts": result.verdicts(),
        "rules": f"{RULE} {RULES}",
        "checks": result.checks,
        "folder": str(comparison.folder),
    }


def _title(result: Result) -> str:
    one = next(iter(result.scores.values()), None)
    if one is None:
        return f"{result.comparison.options.data}: no fine-tuning has finished"
    count = len(result.comparison.seeds)
    seeds = f"{count} seeds" if count > 1 else "one seed"
    return escaped(
        f"{one.task} on {result.dataset}, {one.images} images, {result.comparison.steps} steps, "
        f"{seeds}"
    )


def _table(result: Result, metric: str) -> str:
    comparison, unit = result.comparison, result.units[metric]
    heads = (
        "labels",
        "model",
        f"{metric} ({unit})",
        f"minus {comparison.baseline} (95 % interval)",
    )
    rows: list[tuple[object, ...]] = []
    for share in comparison.options.shares:
        for label in comparison.models:
            value = value_cell(result.row(share, label), metric, comparison.seeds)
            labels = f"{share:g} % ({comparison.num_labelled(share)} images)"
            rows.append((labels, label, value, _difference(result, share, label, metric)))
    return table(tuple(map(escaped, heads)), rows)


def _budget(result: Result) -> str:
    """Return how often the fine-tunings see each label, on which the verdict depends."""
    comparison = result.comparison
    batch = comparison.config.optim.global_batch_size
    shares = comparison.options.shares
    passes = [comparison.steps * batch / comparison.num_labelled(share) for share in shares]
    listed = ", ".join(
        f"{count:.3g} at {share:g} %" for share, count in zip(shares, passes, strict=True)
    )
    return (
        f"{comparison.steps} steps of {batch} images see each labelled image this often: {listed}. "
        "The verdict is on this budget; with a longer one (--budget), random weights may catch up."
    )


def _difference(result: Result, share: float, label: str, metric: str) -> str:
    found = result.difference(share, label, metric)
    if found is None:
        return ""
    if found.half_width is None:
        return f"{found.mean:+.2f} ({found.verdict})"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    noted = f" ({found.verdict})" * (found.verdict == "within noise")
    return f"{found.mean:+.2f} ({low:+.2f} to {high:+.2f}){noted}"


def _failures(result: Result) -> list[str]:
    """Return one line for each failed run of a share without any score, which has no table."""
    comparison = result.comparison
    lines = []
    for share in comparison.options.shares:
        for label in comparison.models:
            for seed in comparison.seeds:
                state = read_state(comparison.job(label, share, seed).folder)
                if state.get("state") == "failed" and share not in result.scores:
                    lines.append(f"{label}, {share:g} %, seed {seed} failed: {state['reason']}")
    return lines
