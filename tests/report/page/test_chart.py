import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcd_hub.report.page.chart import HEIGHT, WIDTH, Curve, draw_chart, short_number


def curve(values, steps=None, **changed):
    steps = range(len(values)) if steps is None else steps
    return Curve(name="loss", title="Loss", steps=list(map(float, steps)), values=values, **changed)


def points(path):
    numbers = list(map(float, re.findall(r"-?[\d.]+", path)))
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_a_falling_loss_falls_from_left_to_right_inside_the_axes():
    chart = draw_chart({"": curve([5.0, 4.0, 3.0])})
    (first, _, last) = places = points(chart.lines[0].path)
    assert first[0] < last[0]
    assert first[1] < last[1], "y counts downwards"
    assert all(chart.left <= x <= chart.right and chart.top <= y <= chart.bottom for x, y in places)
    assert chart.lines[0].label == ""


def test_ticks_are_round_numbers_with_as_many_digits_as_they_need():
    chart = draw_chart({"": curve([0.31, 0.29, 0.276], range(0, 3000, 1000))})
    assert [tick.text for tick in chart.y_ticks] == ["0.27", "0.28", "0.29", "0.30", "0.31"]
    assert [tick.text for tick in chart.x_ticks] == ["0", "500", "1,000", "1,500", "2,000"]


def test_an_axis_from_zero_shows_zero():
    assert draw_chart({"": curve([20.0, 22.0], from_zero=True)}).y_ticks[0].text == "0"
    assert draw_chart({"": curve([20.0, 22.0])}).y_ticks[0].text == "20.0"


def test_a_run_that_logs_every_tenth_step_begins_at_zero_and_a_late_curve_where_it_begins():
    assert draw_chart({"": curve([1.0, 2.0, 3.0], [9, 19, 99])}).x_ticks[0].text == "0"
    assert draw_chart({"": curve([1.0, 2.0], [5000, 6000])}).x_ticks[0].text == "5,000"


def test_the_value_of_the_start_is_a_line_in_a_chart_of_one_curve():
    from_start = curve([20.0, 18.0, 30.0], start=20.0)
    chart = draw_chart({"": from_start})
    assert chart.start_y == pytest.approx(points(chart.lines[0].path)[0][1], abs=0.1)
    assert chart.summary.endswith("Dashed: the start.")
    assert draw_chart({"": curve([20.0, 18.0])}).start_y is None
    both = draw_chart({"A": from_start, "B": from_start}, ["A", "B"])
    assert both.start_y is None


def test_a_curve_gives_some_of_its_points():
    some = curve([float(n) for n in range(21)]).points(3)
    assert some == [(0, 0), (10, 10), (20, 20)]
    assert curve([5.0]).points(10) == [(0, 5)]


def test_the_summary_says_what_the_curve_shows():
    assert draw_chart({"": curve([5.0, 2.5, 3.0])}).summary == (
        "first 5, last 3; lowest 2.5 at step 1, highest 5 at step 0."
    )


def test_a_long_curve_is_drawn_by_means():
    values = [1.0, 3.0] * 5000
    places = points(draw_chart({"": curve(values)}).lines[0].path)
    assert len(places) <= 240
    assert len({y for _, y in places}) == 1, "the mean of neighbours is 2 everywhere"


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-9])
def test_a_constant_curve_is_in_the_middle(value):
    chart = draw_chart({"": curve([value, value])})
    assert all(chart.top + 20 < y < chart.bottom - 20 for _, y in points(chart.lines[0].path))


def test_several_curves_have_labels_that_do_not_overlap_and_the_styles_of_their_labels():
    same = {label: curve([5.0, 3.0]) for label in "BCDE"}
    lines = draw_chart(same, list("ABCDEFGH")).lines
    assert [line.label for line in lines] == list("BCDE")
    assert [line.style for line in lines] == [1, 2, 3, 4]
    heights = sorted(line.label_y for line in lines)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 12 - 1e-9
    assert max(heights) <= HEIGHT - 36
    assert lines[0].label_y != lines[1].label_y
    assert all(line.end[0] + 16 <= WIDTH for line in lines)


def test_labels_of_curves_that_end_elsewhere_stay_at_their_ends():
    curves = {"A": curve([5.0, 3.0], [0, 10]), "B": curve([5.0, 3.0], [0, 100])}
    short, long = draw_chart(curves, ["A", "B"]).lines
    assert short.end[0] < long.end[0] / 2
    assert short.label_y == short.end[1]
    assert long.label_y == long.end[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12640.0, "12,640"), (3.5531, "3.553"), (3.49e-8, "3.49e-08"), (2e9, "2e+09")],
)
def test_numbers_are_short(value, text):
    assert short_number(value) == text


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30),
    st.booleans(),
)
def test_any_finite_values_are_drawn_inside_the_picture(values, from_zero):
    chart = draw_chart({"": curve(values, from_zero=from_zero)})
    for x, y in points(chart.lines[0].path):
        assert math.isfinite(x)
        assert -1 <= y <= HEIGHT
    assert 1 <= len(chart.y_ticks) <= 12
