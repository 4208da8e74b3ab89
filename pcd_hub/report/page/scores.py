"""Tables of scores, with the start and the teacher as the two ends of a scale."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pcd_hub.report.page.content import is_start
from pcd_hub.report.run_report import AGREEMENT
from pcd_hub.weights.cards.results import by_evaluation
from pcd_hub.weights.record import Measurement

_TEACHER = "teacher"


class Cell(NamedTuple):
    """A score."""

    text: str
    share: float | None
    """Place between the start (0) and the teacher (1); None if either was not measured."""


class Row(NamedTuple):
    """The scores of one model."""

    model: str
    is_subject: bool
    cells: Sequence[Cell]


class ScoreTable(NamedTuple):
    """The scores of one evaluation."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Row]
    note: str
    """Protocol and command."""


def score_tables(measured: Mapping[str, Measurement]) -> list[ScoreTable]:
    """Return one table for each evaluation."""
    return [_table(metrics) for metrics in by_evaluation(measured)]


def is_probed(measured: Mapping[str, Measurement]) -> bool:
    """Return whether anything but the agreement with the teacher was measured."""
    return any(table.task != AGREEMENT for table in measured.values())


def share_of_scale(means: Mapping[str, float], value: float) -> float | None:
    """Return the place of a score between the start (0) and the teacher (1)."""
    start = next((mean for model, mean in means.items() if is_start(model)), None)
    if start is None or _TEACHER not in means or means[_TEACHER] == start:
        return None
    return (value - start) / (means[_TEACHER] - start)


def _table(metrics: Sequence[Measurement]) -> ScoreTable:
    one = metrics[0]
    columns = [_with_teacher(metric) for metric in metrics]
    return ScoreTable(
        title=f"{one.task}, {one.dataset}: n = {one.images:,}, {one.spread}",
        heads=[f"{m.metric} ({m.unit})" if m.unit else m.metric for m in metrics],
        rows=[
            Row(
                model=f"{model} (by definition)" if model not in one.means else model,
                is_subject=model == one.subject,
                cells=[
                    _cell(metric, means, model)
                    for metric, means in zip(metrics, columns, strict=True)
                ],
            )
            for model in columns[0]
        ],
        note=f"{one.full_protocol}. Again: {one.command}",
    )


def _with_teacher(metric: Measurement) -> dict[str, float]:
    """Return the means, with the teacher's agreement with itself."""
    if metric.task == AGREEMENT and metric.unit == "%":
        return {**metric.means, _TEACHER: 100.0}
    return dict(metric.means)


def _cell(metric: Measurement, means: Mapping[str, float], model: str) -> Cell:
    spread = f" ± {metric.stds[model]:.2f}" if model in metric.stds else ""
    return Cell(f"{means[model]:.2f}{spread}", share_of_scale(means, means[model]))
