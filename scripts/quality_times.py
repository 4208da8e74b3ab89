"""Curves of scores over minutes, the time to reach a score, and their tables."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN = "plain"
"""The variant without further options, with which the others are compared."""
_DISTURBED = 0.1  # cores that other processes use


@dataclass(frozen=True, kw_only=True)
class Point:
    """The runs of one variant with one budget, on one data set: one value per training seed."""

    minutes: tuple[float, ...]
    scores: tuple[float, ...]
    """Mean IoU in %, each the mean over the probe's seeds."""
    spread: float
    """Standard deviation over the training seeds; over the probe's seeds if there is one run."""

    @classmethod
    def of(cls, minutes: Sequence[float], scores: Sequence[Sequence[float]]) -> "Point":
        """Return the point of some runs; ``scores`` has the probe's seeds of each run."""
        means = [statistics.fmean(of_run) for of_run in scores]
        values = means if len(means) > 1 else scores[0]
        return cls(
            minutes=tuple(minutes),
            scores=tuple(means),
            spread=statistics.stdev(values) if len(values) > 1 else math.nan,
        )

    @property
    def score(self) -> float:
        """Mean over the training seeds."""
        return statistics.fmean(self.scores)

    @property
    def time(self) -> float:
        """Mean minutes over the training seeds."""
        return statistics.fmean(self.minutes)


@dataclass(frozen=True, kw_only=True)
class Reached:
    """When a curve reaches a score."""

    minutes: float
    bound: str = ""
    """"at most" if the smallest budget already reaches it; "not reached" if none does."""

    def __str__(self) -> str:
        shown = f"{self.minutes:.3g} min"
        return {"": shown, "at most": f"<= {shown}"}.get(self.bound, f"not reached in {shown}")

    def ratio_to(self, other: "Reached") -> str:
        """Format the ratio of these minutes to those of another curve, where it can be known."""
        if not other.minutes or "not reached" in {self.bound, other.bound} or other.bound:
            return ""
        return f"{'<= ' if self.bound else ''}{self.minutes / other.minutes:.2f} x"


def time_to(reference: float, points: Iterable[Point]) -> Reached:
    """Return the minutes until the mean score reaches ``reference``.

    The score is interpolated linearly between the two budgets around it, never below the smallest
    or beyond the largest one: every budget has a learning-rate schedule of its own.
    """
    curve = sorted((point.time, point.score) for point in points)
    if not curve:
        raise ValueError("a curve needs at least one point")
    before, low = curve[0]
    if low >= reference:
        return Reached(minutes=before, bound="at most")
    for minutes, score in curve[1:]:
        if score >= reference:
            share = (reference - low) / (score - low)
            return Reached(minutes=before + share * (minutes - before))
        before, low = minutes, score
    return Reached(minutes=before, bound="not reached")


def with_spread(point: Point) -> str:
    """Format a score: mean and standard deviation, and the number of runs if there is one."""
    if math.isnan(point.spread):
        return f"{point.score:.1f}"
    return f"{point.score:.1f} ± {point.spread:.1f}" + (
        " (1 run)" if len(point.scores) == 1 else ""
    )


def points(rows: list[dict[str, Any]], data: str) -> dict[str, list[Point]]:
    """Group the rows to the curve of each variant; external runs with equal minutes are seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        key = row["variant"], row["budget"] or f"{row['minutes']:g}"
        groups.setdefault(key, []).append(row)
    curves: dict[str, list[Point]] = {}
    for (variant, _), group in groups.items():
        point = Point.of(
            [row["minutes"] for row in group], [row["mean_iou"][data] for row in group]
        )
        curves.setdefault(variant, []).append(point)
    return curves


def tables(rows: list[dict[str, Any]], data: str, reference: float | None) -> Iterator[list[Any]]:
    """Yield header and rows of two tables: scores by budget, and the time to each reference.

    References: the given one, or that of plain's largest budget, and every external point.
    """
    curves = points(rows, data)
    yield ["variant", "minutes", f"mean IoU %, {Path(data).name}", "runs", "note"]
    yield [
        [name, f"{p.time:.3g}", with_spread(p), str(len(p.scores)), _note(rows, name)]
        for name, curve in curves.items()
        for p in sorted(curve, key=lambda point: point.time)
    ]
    external = {row["variant"] for row in rows if row["weights"]}
    last = max(curves[PLAIN], key=lambda point: point.time)
    goals = [("given", reference)] if reference else [(f"plain, {last.time:.3g} min", last.score)]
    goals += [
        (f"{name}, {p.time:.3g} min", p.score) for name in sorted(external) for p in curves[name]
    ]
    yield ["mean IoU to reach", *curves]
    yield [[f"{score:.1f} ({goal})", *_times(score, curves)] for goal, score in goals]


def _times(score: float, curves: dict[str, list[Point]]) -> list[str]:
    reached = {name: time_to(score, curve) for name, curve in curves.items()}
    ratios = {name: time.ratio_to(reached[PLAIN]) for name, time in reached.items()}
    return [f"{time}{ratios[name] and f' ({ratios[name]})'}" for name, time in reached.items()]


def _note(rows: list[dict[str, Any]], variant: str) -> str:
    own = [row for row in rows if row["variant"] == variant]
    if own[0]["weights"]:
        return "minutes as given"
    if "step_seconds" in own[0]:
        return f"at {own[0]['step_seconds']:g} s per step, as given"
    others = max(part["other_cores"] for row in own for part in row["parts"])
    return f"disturbed: others used {others:.1f} cores" if others > _DISTURBED else "quiet"
