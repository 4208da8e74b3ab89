"""The sentence of verdict follows its rules."""

import pytest

from pcd_hub.train.lab.paired import Difference
from pcd_hub.train.worth.verdict import verdict


def difference(mean, half_width: float | None = 1.0):
    return Difference(seeds=(0, 1), mean=mean, std=half_width, half_width=half_width)


@pytest.mark.parametrize(
    ("by_share", "expected"),
    [
        (
            {10: 5.0, 30: 2.0, 100: 0.5},
            "Worth it: AP of new against old is higher at 10 % (+5.0) and 30",
        ),
        (
            {10: -5.0, 30: 0.5},
            "Not worth it: AP of new against old is lower at 10 % (-5.0), within noise",
        ),
        (
            {10: 5.0, 100: -5.0},
            "Mixed: AP of new against old is higher at 10 % (+5.0), lower at 100 %",
        ),
        (
            {10: 0.9, 100: -1.0},
            "No gain shown: AP of new against old is within noise at 10 % (+0.9) and",
        ),
    ],
)
def test_the_differences_decide(by_share, expected):
    found = {float(share): difference(mean) for share, mean in by_share.items()}
    assert verdict("new", "old", found, metric="AP").startswith(expected)


def test_one_seed_and_failed_runs_have_no_verdict():
    alone = {10.0: difference(9.0, None), 30.0: None}
    assert "one seed says nothing about noise" in verdict("new", "old", alone, metric="AP")
    assert "runs failed or are missing" in verdict("new", "old", {10.0: None}, metric="AP")


def test_a_share_that_failed_is_named():
    found = verdict("new", "old", {10.0: None, 30.0: difference(3.0)}, metric="AP")
    assert found == (
        "Worth it: AP of new against old is higher at 30 % (+3.0) of the labels, not judged at "
        "10 %."
    )
