import dataclasses

import pytest

from pcd_hub.train.held_out.scores import Scores, compare_with_start, paired_difference


def scores(cka, step=0):
    return Scores(
        step=step, retrieval=(4.0, 5.0, 6.0), cka=cka, loss=(1.0, 2.0, 3.0), effective_rank=7.0
    )


def test_the_standard_error_is_that_of_the_differences_image_by_image():
    found = paired_difference([11.0, 21.0, 34.0], [10.0, 20.0, 30.0])
    assert found.mean == 2
    assert found.standard_error == pytest.approx(1.0), "sqrt(3) / sqrt(3), not that of 10 to 30"
    assert found.is_noise
    assert not paired_difference([12.0, 22.0, 32.5], [10.0, 20.0, 30.0]).is_noise


@pytest.mark.parametrize(
    ("student", "outcome", "words"),
    [
        (
            (20.0, 30.0, 40.5),
            "better",
            "agrees with the teacher better than its random weights on 3",
        ),
        ((0.0, 10.0, 20.5), "worse", "agrees with the teacher worse than its random weights on 3"),
        ((11.0, 19.0, 30.5), "within noise", "differs from its random weights only within noise"),
    ],
)
def test_the_verdict_compares_with_the_start_and_gives_the_numbers(student, outcome, words):
    start = scores((10.0, 20.0, 30.0))
    verdict = compare_with_start(start, scores(student, step=9), start_name="random weights")
    assert verdict.outcome == outcome
    assert words in verdict.sentence
    assert "3 held-out images" in verdict.sentence
    assert "20.0 %" in verdict.sentence
    assert "±" in verdict.sentence


def test_means_and_state():
    found = scores((10.0, 20.0, 30.0), step=4)
    assert found.means() == {"retrieval": 5.0, "cka": 20.0, "effective_rank": 7.0, "loss": 2.0}
    assert Scores.from_dict(dataclasses.asdict(found)) == found


def test_scores_that_disagree_are_noise():
    start = Scores(
        step=0, retrieval=(5.0, 6.0, 7.0), cka=(1.0, 2.0, 3.0), loss=(1.0,) * 3, effective_rank=7.0
    )
    student = Scores(
        step=9, retrieval=(3.0, 4.0, 5.0), cka=(5.0, 6.1, 7.0), loss=(1.0,) * 3, effective_rank=7.0
    )
    found = compare_with_start(start, student, start_name="random weights")
    assert found.outcome == "within noise"
    assert found.sentence.startswith("the scores do not agree whether the student is better than ")
    assert "3 held-out images (few, so it may be chance)" in found.sentence
