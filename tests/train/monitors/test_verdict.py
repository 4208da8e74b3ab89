"""Verdicts on numbers like those of good runs, and of runs that were broken on purpose."""

import pytest

from pcd_hub.train.monitors.verdict import judge

# Recorded with a MobileNetV4-S; CKA is that of a later stage.
GOOD = {
    "pixel_rank": 108.0,
    "pixel_cosine": 0.33,
    "teacher_rank": 79.0,
    "teacher_cosine": 0.25,
    "teacher_views": 0.9,
    "pixel_cka": 0.12,
    "pixel_top1": 0.008,
    "pixel_chance": 0.0086,
    "key_cosine": 0.25,
    "new_keys": 0.12,
    "gradient_norm": 0.8,
}
RANKS = [197, 155, 77, 53, 52, 49, 44, 47, 42, 42, 50, 50, 84]
"""Effective ranks of a MobileNetV4-S with learning rate 0.032; the teacher's was 204."""


def lines(count, *, start=None, **values):
    """Return lines like those of a good run, but for some values."""
    first = {"step": 0, **GOOD, "gradient_norm": 5.1, **(start or {})}
    return [first, *({"step": step, **GOOD, **values} for step in range(1, count))]


def test_a_good_run_is_too_early_and_then_learning():
    assert judge([], total_steps=200).kind == "too early"
    assert judge(lines(20), total_steps=200).kind == "too early"
    verdict = judge(lines(20, pixel_top1=0.08), total_steps=200)
    assert str(verdict) == (
        "learning: the teacher's pixel is found for 8.0% of the pixels, by a guess 0.9%"
    )


def test_a_rank_that_falls_to_a_fifth_and_rises_again_is_no_collapse():
    run = [
        {**GOOD, "step": step, "pixel_rank": rank, "teacher_rank": 204.0}
        for step, rank in enumerate(RANKS)
    ]
    assert not any(judge(run[:n], total_steps=200).is_bad for n in range(len(run)))


def test_old_lines_with_fewer_metrics_give_no_alarm():
    old = {"loss": 7.2, "pixel_rank": 70.0, "pixel_cosine": 0.39, "key_cosine": 0.25}
    run = [{**old, "step": step} for step in range(48)]
    assert {judge(run[:n], total_steps=48).kind for n in range(49)} == {"too early"}


@pytest.mark.parametrize(
    ("broken", "kind", "cause"),
    [
        ({"new_keys": 0.0}, "flat", "keys are not updated"),
        ({"key_cosine": 0.995}, "flat", "maps all images to the same vector"),
        ({"teacher_cosine": 0.97, "teacher_views": 0.19}, "flat", "random weights or a wrong"),
        ({"pixel_rank": 4.0}, "collapsing", "learning rate is too high"),
        ({"pixel_cosine": 0.995}, "collapsing", "learning rate is too high"),
        ({"gradient_norm": 0.013}, "flat", "learning rate is far too high"),
        ({"target_cosine": 0.3}, "flat", "paired wrongly"),
    ],
)
def test_a_broken_run_is_named_in_its_first_tenth(broken, kind, cause):
    start = {"teacher_views": 0.19} if "teacher_views" in broken else {}
    verdict = judge(lines(20, start=start, **broken), total_steps=200)
    assert (verdict.kind, cause in verdict.cause) == (kind, True)
    assert verdict.is_bad
    assert verdict.remedy


def test_wrong_targets_are_named_by_one_measurement():
    start = {"step": 0, "target_cosine": 0.98}
    assert "mean cosine 0.98 (expected at least 0.99)" in judge([start], total_steps=9999).words
    assert not judge([{**start, "target_cosine": 0.9998}], total_steps=9999).is_bad


def test_a_gradient_that_vanishes_because_all_is_learnt_is_no_fault():
    learnt = lines(20, gradient_norm=0.01, pixel_top1=0.9)
    assert judge(learnt, total_steps=200).kind == "learning"
    assert judge(lines(300, gradient_norm=0.01, pixel_cka=0.2), total_steps=600).kind == "flat"


def test_a_run_without_a_sign_of_learning_is_flat_after_a_third():
    assert judge(lines(359), total_steps=1200).kind == "too early"
    verdict = judge(lines(360), total_steps=1200)
    assert verdict.kind == "flat"
    assert "no sign of learning after 360 of 1200 steps" in verdict.words


def test_a_run_whose_loss_allows_no_retrieval_is_not_called_flat():
    run = lines(400)
    for line in run:
        del line["pixel_top1"]
    assert judge(run, total_steps=1200).kind == "too early"


def test_a_short_run_is_not_called_flat():
    assert judge(lines(299), total_steps=300).kind == "too early"


def test_a_run_that_has_begun_to_learn_is_not_called_flat():
    """The metrics of a ResNet-18 on photographs, which learnt nothing for 29 steps."""
    found = [0.0, 0.0, 0.0, 0.055, 0.113, 0.156]
    run = lines(300) + [{**GOOD, "step": 300 + n, "pixel_top1": top} for n, top in enumerate(found)]
    assert judge(run[:-3], total_steps=900).kind == "flat"
    assert judge(run, total_steps=900).kind == "too early"


def test_held_out_images_show_a_student_that_is_worse_than_its_start():
    """Good weights are worse at first, while the head is new."""
    assert judge(lines(99), total_steps=200, held_out="worse").kind == "too early"
    late = judge(lines(100), total_steps=200, held_out="worse")
    assert (late.kind, late.remedy) == ("worse than its start", "lower --optim.lr-per-256")
    assert judge(lines(12), total_steps=12, held_out="worse").cause == "12 steps are too few"
