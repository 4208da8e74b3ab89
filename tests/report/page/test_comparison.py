import dataclasses

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.report.page.comparison import compare_runs
from pcd_hub.report.page.content import read_report
from tests.report.page.making import CONFIG, PROBE, finished_run


@pytest.fixture
def two(tmp_path):
    other = {**CONFIG, "optim": {"global_batch_size": 32, "clip": 1.0}}
    better = dataclasses.replace(PROBE, means={**PROBE.means, "distilled student": 38.0})
    metrics = {"probe": dataclasses.asdict(better)}
    return [
        read_report(finished_run(tmp_path / "one")),
        read_report(finished_run(tmp_path / "two", config=other, metrics=metrics)),
    ]


def test_only_the_settings_that_differ_are_listed(two):
    assert [(row.label, row.values) for row in compare_runs(two).settings] == [
        ("--optim.global-batch-size", ["16", "32"]),
        ("--optim.clip", ["no such option", "1.0"]),
    ]


def test_scores_of_one_protocol_are_in_one_row_with_what_they_are_compared_with(two):
    (row,) = compare_runs(two).scores
    assert row.label == (
        "linear segmentation probe, generated scenes, 10 classes: mean IoU (%), n = 64"
    )
    assert row.values == [
        "35.00 (start 20.00, teacher 40.00)",
        "38.00 (start 20.00, teacher 40.00)",
    ]


@pytest.mark.parametrize("changed", [{"protocol": "another"}, {"protocol_version": 2}])
def test_scores_of_other_protocols_are_not_compared(two, tmp_path, changed):
    other = dataclasses.replace(PROBE, **changed)
    third = finished_run(tmp_path / "three", metrics={"probe": dataclasses.asdict(other)})
    rows = compare_runs([*two, read_report(third)]).scores
    assert [row.values[2] for row in rows] == [
        "not measured",
        "35.00 (start 20.00, teacher 40.00)",
    ]
    assert rows[1].values[:2] == ["not measured", "not measured"]


def test_each_run_has_a_letter_and_is_given_once(two):
    assert list(compare_runs(two).runs) == ["A", "B"]
    with pytest.raises(ConfigError, match="one is given twice; expected different runs"):
        compare_runs([*two, two[0]])
    with pytest.raises(ConfigError, match="9 runs: expected at most 8"):
        compare_runs([two[0]] * 9)
