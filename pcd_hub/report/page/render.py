"""Render the report of a run, or of several side by side, as one self-contained HTML page."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from pcd_hub.report.page.chart import Chart, Curve, draw_chart
from pcd_hub.report.page.comparison import Comparison, compare_runs
from pcd_hub.report.page.pictures import (
    Picture,
    PictureError,
    PictureRow,
    embed,
    feature_rows,
    receptive_field_row,
)
from pcd_hub.report.page.scores import is_probed, score_tables
from pcd_hub.report.page.templates import environment
from pcd_hub.report.run_report import MAX_VALUES, MEANING, RunReport, measures_agreement

_CURVE_PICTURE = "pictures/training.png"
"""A picture of curves that the page draws itself."""
_SCENES_PICTURE = "pictures/pca.png"
"""Feature maps of generated scenes, which are shown if there are none of the run's images."""

ResultT = TypeVar("ResultT")


def render_page(report: RunReport) -> str:
    """Render the report of one run."""
    failures: list[str] = []
    features = _tried(lambda: feature_rows(report), [], failures)
    fields = _tried(lambda: receptive_field_row(report), None, failures)
    return (
        environment()
        .get_template("run.html.jinja")
        .render(
            report=report,
            features=features,
            fields=fields,
            others=_other_pictures(report, failures, with_scenes=not features),
            charts=[draw_chart({"": curve}) for curve in report.curves],
            values=curve_values(report.curves),
            tables=score_tables(report.measurements),
            probed=is_probed(report.measurements),
            agreement=measures_agreement(report.measurements),
            meaning=MEANING,
            warnings=[*report.warnings, *failures],
            reasons={_option(each.option): each.reason for each in report.settings},
        )
    )


def render_comparison(reports: Sequence[RunReport]) -> str:
    """Render two or more runs side by side; each has a letter."""
    comparison: Comparison = compare_runs(reports)
    failures: list[str] = []
    features: dict[str, list[PictureRow]] = {}
    for letter, report in comparison.runs.items():
        features[letter] = _tried(lambda report=report: feature_rows(report), [], failures)
    return (
        environment()
        .get_template("comparison.html.jinja")
        .render(
            comparison=comparison,
            runs=comparison.runs,
            charts=_joint_charts(comparison),
            features=features,
            warnings=failures,
        )
    )


def curve_values(curves: Sequence[Curve]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return some points of each curve by its title, for a table."""
    return [(curve.title, curve.points(MAX_VALUES)) for curve in curves]


def _joint_charts(comparison: Comparison) -> list[Chart]:
    """Return a chart of each metric that any run has, with all runs that have it."""
    metrics: dict[str, dict[str, Curve]] = {}
    for letter, report in comparison.runs.items():
        for curve in report.curves:
            metrics.setdefault(curve.name, {})[letter] = curve
    return [draw_chart(curves, list(comparison.runs)) for curves in metrics.values()]


def _other_pictures(
    report: RunReport, failures: list[str], *, with_scenes: bool
) -> list[tuple[str, Picture]]:
    shown = []
    for path, caption in report.pictures.items():
        if path == _CURVE_PICTURE or (path == _SCENES_PICTURE and not with_scenes):
            continue
        file = report.folder / path
        picture = _tried(lambda file=file, alt=caption: embed(file, alt=alt), None, failures)
        if picture is not None:
            shown.append((caption, picture))
    return shown


def _tried(make: Callable[[], ResultT], otherwise: ResultT, failures: list[str]) -> ResultT:
    try:
        return make()
    except PictureError as error:
        failures.append(str(error))
        return otherwise


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
