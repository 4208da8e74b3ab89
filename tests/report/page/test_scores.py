import dataclasses

import pytest

from pcd_hub.report.page.scores import is_probed, score_tables, share_of_scale
from tests.report.page.making import PROBE


def test_start_and_teacher_are_the_ends_of_the_scale():
    (table,) = score_tables({"probe": PROBE})
    assert [row.model for row in table.rows] == ["random weights", "distilled student", "teacher"]
    assert [row.cells[0].share for row in table.rows] == [0.0, 0.75, 1.0]
    assert [row.is_subject for row in table.rows] == [False, True, False]
    assert (
        table.title == "linear segmentation probe, generated scenes, 10 classes: n = 64, one seed"
    )


def test_the_start_may_be_a_named_weight():
    assert share_of_scale({"start (a.b)": 10.0, "teacher": 30.0}, 15.0) == 0.25


@pytest.mark.parametrize(
    "means", [{"random weights": 1.0}, {"teacher": 1.0}, {"random weights": 1.0, "teacher": 1.0}]
)
def test_without_both_ends_there_is_no_scale(means):
    assert share_of_scale(means, 1.0) is None


def test_the_teacher_agrees_with_itself():
    agreement = dataclasses.replace(
        PROBE,
        task="agreement with the teacher",
        metric="CKA with the teacher",
        means={"random weights": 20.0, "distilled student": 60.0},
    )
    (table,) = score_tables({"held_out": agreement})
    assert table.rows[-1].model == "teacher (by definition)"
    assert table.rows[1].cells[0].share == 0.5
    assert not is_probed({"held_out": agreement})
    assert is_probed({"held_out": agreement, "probe": PROBE})


def test_metrics_of_one_evaluation_are_columns():
    other = dataclasses.replace(PROBE, metric="pixel accuracy", means=dict(PROBE.means))
    (table,) = score_tables({"a": PROBE, "b": other})
    assert table.heads == ["mean IoU (%)", "pixel accuracy (%)"]


def test_seeds_give_a_spread():
    several = dataclasses.replace(PROBE, seeds=3, stds=dict.fromkeys(PROBE.means, 0.5))
    (table,) = score_tables({"probe": several})
    assert table.rows[1].cells[0].text == "35.00 ± 0.50"
