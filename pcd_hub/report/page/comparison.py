"""Compare several runs: facts and scores side by side, and the settings that differ."""

import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pcd_hub.errors import ConfigError
from pcd_hub.report.page.content import is_start
from pcd_hub.report.run_report import RunReport
from pcd_hub.weights.record import Measurement

MAX_RUNS = 8
"""Runs whose curves can be told apart in one chart."""
NOT_MEASURED = "not measured"
_ABSENT = "no such option"


class ComparedRow(NamedTuple):
    """A fact of every run."""

    label: str
    values: Sequence[str]


class Comparison(NamedTuple):
    """Several runs side by side."""

    runs: Mapping[str, RunReport]
    """The runs by letter."""
    facts: Sequence[ComparedRow]
    scores: Sequence[ComparedRow]
    settings: Sequence[ComparedRow]
    """The options that are not the same in all runs."""


def compare_runs(reports: Sequence[RunReport]) -> Comparison:
    """Put the runs side by side.

    Raises:
        ConfigError: If there are more than ``MAX_RUNS``, or one is given twice.
    """
    if len(reports) > MAX_RUNS:
        raise ConfigError(
            f"{len(reports)} runs: expected at most {MAX_RUNS}, whose curves can be told apart"
        )
    folders = [report.folder.resolve() for report in reports]
    if twice := next((one for one in folders if folders.count(one) > 1), None):
        raise ConfigError(f"{twice} is given twice; expected different runs")
    runs = dict(zip(string.ascii_uppercase, reports, strict=False))
    return Comparison(
        runs=runs,
        facts=_facts(reports),
        scores=_scores(reports),
        settings=_different([report.config for report in reports]),
    )


def _facts(reports: Sequence[RunReport]) -> list[ComparedRow]:
    by_run = [
        {
            "weight": report.weight,
            **report.summary,
            **report.training,
            **report.timing,
            **{
                f"receptive field, {model}": f"half in a square of {100 * side:.0f} % of the side"
                for model, side in report.receptive_sides.items()
            },
        }
        for report in reports
    ]
    labels = dict.fromkeys(label for facts in by_run for label in facts)
    return [
        ComparedRow(label, [str(facts.get(label, NOT_MEASURED)) for facts in by_run])
        for label in labels
    ]


def _scores(reports: Sequence[RunReport]) -> list[ComparedRow]:
    """Return a row for each metric of each evaluation; other protocols are other evaluations."""
    rows: dict[tuple[object, ...], dict[int, str]] = {}
    for place, report in enumerate(reports):
        for table in report.measurements.values():
            alike = (table.task, table.dataset, table.metric, table.unit, table.images)
            rows.setdefault((*alike, table.full_protocol), {})[place] = _score(table)
    return [
        ComparedRow(
            f"{task}, {dataset}: {metric} ({unit}), n = {images:,}",
            [values.get(place, NOT_MEASURED) for place in range(len(reports))],
        )
        for (task, dataset, metric, unit, images, _), values in rows.items()
    ]


def _score(table: Measurement) -> str:
    spread = f" ± {table.stds[table.subject]:.2f}" if table.subject in table.stds else ""
    others = [
        f"{'start' if is_start(model) else model} {mean:.2f}"
        for model, mean in table.means.items()
        if model != table.subject
    ]
    return f"{table.means[table.subject]:.2f}{spread}" + (
        f" ({', '.join(others)})" if others else ""
    )


def _different(configs: Sequence[Mapping[str, str]]) -> list[ComparedRow]:
    options = dict.fromkeys(option for config in configs for option in config)
    rows = [
        ComparedRow(option, [config.get(option, _ABSENT) for config in configs])
        for option in options
    ]
    return [row for row in rows if len(set(row.values)) > 1]
