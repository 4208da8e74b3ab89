"""Geometry of line charts: ticks, and paths in the units of an SVG's ``viewBox``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 340.0, 190.0
"""Size of a chart in units; its text has 11 units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 10.0, 36.0
_LABEL_WIDTH = 16.0
"""Room for the label at the end of each line."""
_LABEL_HEIGHT = 12.0
_MAX_POINTS = 240


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value by step."""

    name: str
    """Key of ``metrics.jsonl``, or ``held_out_`` and a key of ``held_out.jsonl``."""
    title: str
    steps: Sequence[float]
    values: Sequence[float]
    from_zero: bool = False
    """Whether the axis begins at 0."""
    start: float | None = None
    """The value before the first step, to compare with; None if there is none."""

    def points(self, most: int) -> list[tuple[float, float]]:
        """Return step and value of some points: the first, the last and some between."""
        last = len(self.steps) - 1
        count = min(most, last + 1)
        places = sorted({round(last * n / max(1, count - 1)) for n in range(count)})
        return [(self.steps[at], self.values[at]) for at in places]


class Tick(NamedTuple):
    """A labelled place on an axis."""

    place: float
    text: str


class ChartLine(NamedTuple):
    """One drawn curve."""

    path: str
    """The ``d`` of an SVG path."""
    label: str
    """Text at its end; may be empty."""
    style: int
    """Number of its colour and dashes: the same for one label in all charts."""
    end: tuple[float, float]
    """Where the curve ends."""
    label_y: float
    summary: str
    """First, lowest, highest and last value in words."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart that is ready to be drawn."""

    title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[ChartLine]
    left: float = _LEFT
    right: float
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    start_y: float | None = None
    """Height of the line of the value before the first step."""

    @property
    def summary(self) -> str:
        """Describe the curves in words, for those who do not see them."""
        summaries = [
            f"{line.label}: {line.summary}" if line.label else line.summary for line in self.lines
        ]
        return " ".join([*summaries, *(["Dashed: the start."] if self.start_y else [])])


def draw_chart(curves: Mapping[str, Curve], labels: Sequence[str] = ("",)) -> Chart:
    """Lay out the curves of one metric.

    Args:
        curves: At least one curve, by the label at its end, which may be empty.
        labels: The labels of all charts of the page, in the order of their styles.
    """
    some = next(iter(curves.values()))
    steps = [step for curve in curves.values() for step in (min(curve.steps), max(curve.steps))]
    values = [v for curve in curves.values() for v in (min(curve.values), max(curve.values))]
    values += [] if some.start is None else [some.start]
    low, high = min(values), max(values)
    low = min(0.0, low) if some.from_zero else low
    y_places = _ticks(*_widened(low, high))
    low, high = min(low, y_places[0]), max(high, y_places[-1])
    first, last = _step_range(steps)
    right = WIDTH - _RIGHT - (_LABEL_WIDTH if any(curves) else 0.0)
    bottom = HEIGHT - _BOTTOM

    def x(step: float) -> float:
        return _LEFT + (right - _LEFT) * (step - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * (value - low) / (high - low)

    paths = {label: _thinned(curve.steps, curve.values) for label, curve in curves.items()}
    points = {label: [(x(step), y(value)) for step, value in thin] for label, thin in paths.items()}
    label_ys = _label_heights([points[label][-1] for label in curves])
    return Chart(
        title=some.title,
        right=right,
        start_y=y(some.start) if len(curves) == 1 and some.start is not None else None,
        x_ticks=[Tick(x(s), _text(s, 1.0)) for s in _ticks(first, last) if first <= s <= last],
        y_ticks=[Tick(y(value), text) for value, text in _labelled(y_places)],
        lines=[
            ChartLine(
                path=_path(points[label]),
                label=label,
                style=labels.index(label),
                end=points[label][-1],
                label_y=label_y,
                summary=_summary(curve),
            )
            for (label, curve), label_y in zip(curves.items(), label_ys, strict=True)
        ],
    )


def _step_range(steps: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis of steps, which begins at 0 unless the curve begins late."""
    first, last = min(steps), max(steps)
    first = min(first, 0.0) if first < last / 5 else first
    return first, max(last, first + 1)


def short_number(value: float) -> str:
    """Format a number with four significant digits."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _summary(curve: Curve) -> str:
    lowest = min(range(len(curve.values)), key=curve.values.__getitem__)
    highest = max(range(len(curve.values)), key=curve.values.__getitem__)
    ends = f"first {short_number(curve.values[0])}, last {short_number(curve.values[-1])}"
    return (
        f"{ends}; lowest {short_number(curve.values[lowest])} at step {curve.steps[lowest]:,.0f}, "
        f"highest {short_number(curve.values[highest])} at step {curve.steps[highest]:,.0f}."
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return a range that is not empty."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    margin = abs(low) / 2 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten that cover the range."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
    return [
        round(n * step, 12) if step >= 1e-9 else n * step
        for n in range(math.floor(low / step), math.ceil(high / step) + 1)
    ]


def _labelled(places: Sequence[float]) -> list[tuple[float, str]]:
    step = places[1] - places[0]
    return [(place, _text(place, step)) for place in places]


def _text(value: float, step: float) -> str:
    """Format a tick with as many digits as the step between ticks needs."""
    largest = max(abs(value), step)
    if largest >= 1e6 or step < 1e-4:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e") if value else "0"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _thinned(steps: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Return at most ``_MAX_POINTS`` points; of more, the means of neighbours."""
    size = -(-len(steps) // _MAX_POINTS)
    if size == 1:
        return list(zip(steps, values, strict=True))
    parts = [slice(at, at + size) for at in range(0, len(steps), size)]
    return [(_mean(steps[part]), _mean(values[part])) for part in parts]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(value / len(values) for value in values)


def _path(points: Sequence[tuple[float, float]]) -> str:
    places = [f"{x:.1f} {y:.1f}" for x, y in points]
    return f"M{places[0]}" + "".join(f"L{place}" for place in places[1:] or places)


def _label_heights(ends: Sequence[tuple[float, float]]) -> list[float]:
    """Return a height for the label at the end of each curve, so that none covers another."""
    order = sorted(range(len(ends)), key=lambda index: ends[index][1])
    placed = [end[1] for end in ends]

    def neighbours(index: int, others: Sequence[int]) -> list[float]:
        return [placed[n] for n in others if abs(ends[n][0] - ends[index][0]) < _LABEL_WIDTH]

    for place, index in enumerate(order):  # downwards, away from those above
        above = neighbours(index, order[:place])
        placed[index] = max([placed[index], *(y + _LABEL_HEIGHT for y in above)])
    for place, index in reversed([*enumerate(order)]):  # and back, if they leave the chart
        below = neighbours(index, order[place + 1 :])
        limit = min([HEIGHT - _BOTTOM, *(y - _LABEL_HEIGHT for y in below)])
        placed[index] = min(placed[index], limit)
    return placed
