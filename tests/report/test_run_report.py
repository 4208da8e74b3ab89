"""The report of a run, from plain facts."""

import dataclasses

import pytest

from pcd_hub.report.advice import Situation, next_steps
from pcd_hub.report.run_report import LoggedVerdict, RunReport, Setting, render_report
from pcd_hub.weights.record import Measurement

HELD_OUT = Measurement(
    task="agreement with the teacher",
    dataset="40 held-out images",
    metric="retrieval",
    unit="%",
    images=40,
    seeds=1,
    protocol="without labels",
    command="pcd-hub distill photos",
    subject="distilled student",
    means={"random weights": 3.0, "distilled student": 21.5},
)
REPORT = RunReport(
    weight="resnet18.pcd",
    run="runs/own_images",
    load="resnet18.pcd",
    verdict="the student agrees better with the teacher than its start",
    measurements={"held_out": HELD_OUT},
    summary={"student": "resnet18", "images": "photos: 300 images"},
    settings=[Setting(option="optim.global_batch_size", value=32, reason="a CPU")],
    config_name="own_images",
    survey={"exact copies": 2},
    duplicates=[("a.jpg", "b*_.jpg")],
    training={"steps": 100},
    warnings=["skipped a broken image: <b>.jpg"],
    pictures={"pictures/pca.png": "Feature maps"},
    licenses={"code": "apache-2.0", "weights": "not stated", "teacher": "mit"},
    advice=["More images."],
)


def test_early_verdicts_are_a_table_and_a_bad_last_one_stands_below_the_verdict():
    said = [
        LoggedVerdict(step=9, kind="learning", words="CKA rose"),
        LoggedVerdict(step=99, kind="flat", words="a|b", cause="c", remedy="d", is_bad=True),
    ]
    text = render_report(dataclasses.replace(REPORT, early_verdicts=said))
    lines = [line for line in text.splitlines() if line]
    assert lines[2].startswith('**Warning: the last early verdict, at step 99, was "flat": a')
    assert "| 99 | flat | a\\|b | c | d |" in lines
    assert (
        "Warning" not in render_report(dataclasses.replace(REPORT, early_verdicts=said[:1]))[:300]
    )


def test_the_verdict_comes_first_then_scores_and_use():
    text = render_report(REPORT)
    lines = [line for line in text.splitlines() if line]
    assert lines[0] == "# resnet18.pcd: report of the run"
    assert lines[1] == "**The student agrees better with the teacher than its start.**"
    titles = [line for line in lines if line.startswith("#")]
    assert titles[1:] == [
        f"## {title}"
        for title in (
            *("Use it", "Try next", "What was trained", "Training", "Settings"),
            *("Images", "Warnings", "Pictures", "Publish it"),
        )
    ]
    assert "| **distilled student** (this weight) | **21.50** |" in text
    assert 'timm.create_model("resnet18.pcd", pretrained=True, features_only=True)' in text
    assert "| --optim.global-batch-size | 32 | a CPU |" in text
    assert "![](pictures/pca.png)" in text


def test_names_of_files_are_not_markup():
    text = render_report(REPORT)
    assert r"- a.jpg and b\*\_.jpg" in text
    assert "- skipped a broken image: &lt;b&gt;.jpg" in text


def test_only_licences_that_are_not_stated_are_asked_for():
    text = render_report(REPORT)
    assert "publish runs/own_images ORG/resnet18.pcd --license ID --data-license ID --dry" in text


def test_what_there_is_not_is_left_out():
    plain = dataclasses.replace(REPORT, measurements={}, settings=[], survey={}, warnings=[])
    text = render_report(plain)
    assert "## Images" not in text
    assert "Agreement with the teacher is" not in text
    assert "They are those of the configuration own_images. All settings" in text
    assert "## Warnings\n\nNone." in text


SITUATION = Situation(
    run="runs/x",
    outcome="better",
    still_improving=False,
    stopped_early=False,
    num_images=5000,
    passes=20.0,
    share_of_copies=0.0,
    data_wait=0.0,
    on_scenes=False,
    teacher="timm:vit_small_patch14_dinov2",
    starts_from_weights=True,
)


def test_a_good_run_only_needs_labels():
    assert next_steps(SITUATION) == [
        "Measure the features on your task: `pcd-hub probe LABELLED runs/x`."
    ]


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"outcome": "worse"}, "use a smaller `--optim.lr-per-256`"),
        ({"outcome": "within noise"}, "`pcd-hub distill --resume runs/x --hours H` continues"),
        ({"outcome": "worse", "starts_from_weights": False}, "worse than its start: use a smaller"),
        ({"outcome": "within noise"}, "Look at `pictures/views.png`"),
        ({"stopped_early": True}, "more time does not"),
        ({"still_improving": True}, "The score was still improving at the end"),
        ({"num_images": 50, "passes": 400.0}, "Each of the 50 images was seen 400 times"),
        ({"share_of_copies": 0.1}, "10 % of the images are copies"),
        ({"data_wait": 0.4}, "40 % of the time was spent waiting"),
        ({"teacher": "quickstart"}, "`pcd-hub teachers` lists"),
        ({"starts_from_weights": False}, "`--student.weights pretrained`"),
        ({"on_scenes": True}, "`pcd-hub distill DIR` uses your own images"),
        ({"fault": "Lower the learning rate."}, "Lower the learning rate."),
    ],
)
def test_each_rule_gives_its_advice(change, advice):
    found = next_steps(dataclasses.replace(SITUATION, **change))
    assert any(advice in line for line in found)
    assert not any(advice in line for line in next_steps(SITUATION))


def test_a_fault_of_the_run_takes_the_place_of_more_training():
    facts = dataclasses.replace(SITUATION, outcome="within noise", fault="Check the teacher.")
    found = next_steps(facts)
    assert found[0] == "Check the teacher."
    assert not any("train for longer" in line for line in found)
