import math

import pytest

from quality_times import Point, Reached, points, tables, time_to, with_spread


def point(minutes, score):
    return Point.of([minutes], [[score]])


CURVE = [point(20, 40.0), point(5, 20.0), point(10, 30.0)]


def test_times_are_interpolated_between_budgets():
    assert time_to(25.0, CURVE) == Reached(minutes=7.5)
    assert time_to(30.0, CURVE).minutes == 10
    assert str(time_to(35.0, CURVE)) == "15 min"


def test_no_time_is_extrapolated():
    assert str(time_to(41.0, CURVE)) == "not reached in 20 min"
    assert str(time_to(15.0, CURVE)) == "<= 5 min"


def test_a_curve_that_falls_counts_where_it_reaches_the_score_first():
    curve = [point(1, 10.0), point(2, 20.0), point(3, 15.0), point(4, 30.0)]
    assert time_to(18.0, curve).minutes == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        (Reached(minutes=5), Reached(minutes=10), "0.50 x"),
        (Reached(minutes=5, bound="at most"), Reached(minutes=10), "<= 0.50 x"),
        (Reached(minutes=5, bound="not reached"), Reached(minutes=10), ""),
        (Reached(minutes=5), Reached(minutes=10, bound="not reached"), ""),
        (Reached(minutes=5), Reached(minutes=10, bound="at most"), ""),
    ],
)
def test_ratios_exist_where_both_times_are_known(one, other, ratio):
    assert one.ratio_to(other) == ratio


def test_the_spread_is_that_of_the_training_seeds_unless_there_is_one():
    several = Point.of([1.0, 2.0], [[10.0, 12.0], [20.0, 22.0]])
    assert (several.time, several.score) == (1.5, 16.0)
    assert several.spread == pytest.approx(10 / math.sqrt(2))
    assert with_spread(Point.of([1.0], [[10.0, 12.0]])) == "11.0 ± 1.4 (1 run)"
    assert with_spread(point(1, 10.0)) == "10.0"


def row(variant, budget, minutes, score, *, weights="", other_cores=0.0):
    return {
        "variant": variant,
        "budget": budget,
        "minutes": minutes,
        "mean_iou": {"set": [score]},
        "weights": weights,
        "parts": [{"other_cores": other_cores}],
    }


ROWS = [
    row("plain", "--run.max-steps=10", 10.0, 20.0),
    row("plain", "--run.max-steps=20", 20.0, 30.0, other_cores=0.5),
    row("fast", "--run.max-steps=10", 5.0, 25.0),
    row("fast", "--run.max-steps=20", 10.0, 35.0),
    row("peer", "", 30.0, 22.0, weights="peer.pth"),
]


def test_runs_of_several_seeds_are_one_point():
    curves = points([*ROWS, row("fast", "--run.max-steps=10", 7.0, 27.0)], "set")
    assert [len(curve) for curve in curves.values()] == [2, 2, 1]
    assert (curves["fast"][0].time, curves["fast"][0].score) == (6.0, 26.0)


def test_tables_compare_with_plain_and_with_the_peer():
    header, scores, goals, times = tables(ROWS, "set", None)
    assert header[-1] == "note"
    assert [line[-1] for line in scores] == [
        *["disturbed: others used 0.5 cores"] * 2,
        *["quiet"] * 2,
        "minutes as given",
    ]
    assert goals == ["mean IoU to reach", "plain", "fast", "peer"]
    assert times == [
        ["30.0 (plain, 20 min)", "20 min (1.00 x)", "7.5 min (0.38 x)", "not reached in 30 min"],
        ["22.0 (peer, 30 min)", "12 min (1.00 x)", "<= 5 min (<= 0.42 x)", "<= 30 min (<= 2.50 x)"],
    ]
    *_, given = tables(ROWS, "set", 25.0)
    assert given[0][:2] == ["25.0 (given)", "15 min (1.00 x)"]
