import dataclasses
import json

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.report.page.content import flat_config, read_report
from pcd_hub.report.page.run_folder import Notes
from tests.report.page.making import CONFIG, FEATURES, NOTES, PROBE, finished_run

HELD_OUT = {
    "images": 12,
    "planned_steps": 400,
    "best_step": 300,
    "last_step": 400,
    "stopped_early": False,
    "start": {"cka": 10.0},
    "outcome": "better",
    "verdict": "the student agrees with the teacher better than its start",
}


def test_one_sentence_says_what_was_distilled_from_what_on_what(tmp_path):
    report = read_report(finished_run(tmp_path / "run"))
    assert report.what == (
        "test_resnet (0.4 M parameters), from random weights, was distilled from resnet10t "
        "(local-dir:teacher) on 200 images of photos without labels, by Pixel-Wise Contrastive "
        "Distillation."
    )


def test_the_verdict_is_that_of_the_held_out_images_then_of_the_probe(tmp_path):
    probed = {"scene_probe": dataclasses.asdict(PROBE)}
    both = finished_run(tmp_path / "both", held_out=HELD_OUT, metrics=probed)
    assert read_report(both).verdict == HELD_OUT["verdict"]
    probe = read_report(finished_run(tmp_path / "probe", metrics=probed))
    assert probe.verdict.startswith(
        "the student is better than its start: 35.0 % mean IoU, the start 20.0 (linear"
    )
    none = read_report(finished_run(tmp_path / "none", metrics={}))
    assert none.verdict.startswith("it was not measured whether the student is better")


def test_the_early_verdicts_are_those_of_the_record_and_the_last_one_may_be_an_alarm(tmp_path):
    learning = {"step": 19, "kind": "learning", "words": "CKA rose", "is_bad": False}
    falling = {"step": 180, "kind": "collapsing", "words": "rank 2", "cause": "x", "is_bad": True}
    odd = [{"kind": "no step"}, {"step": "x"}]
    good = read_report(finished_run(tmp_path / "good", verdicts=(learning, *odd)))
    assert [one.step for one in good.early_verdicts] == [19]
    assert good.alarm == ""
    bad = read_report(finished_run(tmp_path / "bad", verdicts=(learning, falling)))
    assert bad.alarm == (
        'warning: the last early verdict, at step 180, was "collapsing": rank 2; likely cause: x'
    )
    assert read_report(finished_run(tmp_path / "none")).early_verdicts == ()


def test_the_facts_are_those_of_the_record(tmp_path):
    start = {"name": "resnet18.a1_in1k", "source": "timm", "sha256": "a", "license": "mit"}
    early = {**CONFIG["data"], "early_image_size": 64, "early_share": 0.25}
    folder = finished_run(
        tmp_path / "run",
        held_out=HELD_OUT,
        start=start,
        data={"source": ["a", "b"], "fingerprint": "x", "images": 1200},
        config={**CONFIG, "data": early},
    )
    report = read_report(folder)
    assert report.summary["student"] == "test_resnet, from resnet18.a1_in1k"
    assert report.summary["images"] == "a, b: 1,200 images for training, 12 others held out"
    assert report.summary["views"] == (
        "two of 96 x 96 px for each image, of 64 px in the first 100 steps"
    )
    assert report.training["speed"] == "20.0 images/s"
    assert report.training["loss"] == "5.000 at first, 3.100 at the end"
    assert report.config["--data.early-image-size"] == "64"


def test_the_time_is_split_into_what_is_known(tmp_path):
    timing = read_report(finished_run(tmp_path / "run")).timing
    assert timing["waiting for images"] == "4.0 s, 25.0 % of the steps"
    assert timing["teacher and student"].startswith("12.0 s, 75.0 % of the steps; not measured")
    assert timing["before, between and after the steps"].startswith("4.6 min: start")


def test_a_resumed_run_does_not_state_the_time_of_its_last_part_as_the_rest(tmp_path):
    hardware = {"device": "CPU", "processes": 1, "seconds": 5}
    timing = read_report(finished_run(tmp_path / "run", hardware=hardware)).timing
    assert set(timing) == {"waiting for images", "teacher and student"}


def test_a_stream_has_no_number_of_images(tmp_path):
    data = {"source": "hf-stream:org/name", "fingerprint": "x", "images": None}
    report = read_report(finished_run(tmp_path / "run", data=data))
    assert "on a stream of images of hf-stream:org/name" in report.what
    assert report.training["images seen"] == "6,400"


def test_the_export_is_found_where_the_folder_is_now(tmp_path):
    folder = finished_run(tmp_path / "run")
    assert read_report(folder).load == ""
    (folder / "export").mkdir()
    (folder / "export" / "pcd_manifest.json").write_text("{}")
    moved = folder.rename(tmp_path / "moved")
    assert read_report(moved).load == f"local-dir:{moved / 'export'}"


@pytest.mark.parametrize("path", ["../secret.png", "pictures/../a.png", "/etc/a.png", "a.png"])
def test_pictures_outside_the_folder_of_pictures_are_not_shown(tmp_path, path):
    sheet = dataclasses.replace(FEATURES, path=path)
    folder = finished_run(tmp_path / "run", notes=dataclasses.replace(NOTES, features=sheet))
    for place in (tmp_path / "secret.png", folder / "a.png"):
        place.write_bytes((folder / FEATURES.path).read_bytes())
    assert read_report(folder).features is None


def test_an_old_run_without_notes_still_has_a_report(tmp_path):
    folder = finished_run(tmp_path / "run", notes=Notes())
    (folder / "report.json").unlink()
    report = read_report(folder)
    assert report.features is None
    assert report.warnings == []


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {}},
        {"config": {**CONFIG, "data": 3}},
        {"teacher": {}},
        {"data": {}},
        {"hardware": {}},
        {"data": {"source": "a", "images": "many"}},
        {"held_out": {"start": {"cka": 1}}},
        {"metrics": {"probe": {}}},
    ],
)
def test_a_record_without_its_facts_is_one_line(tmp_path, changed):
    with pytest.raises(ConfigError, match=r"run is damaged \(\w+: .*restore them") as caught:
        read_report(finished_run(tmp_path / "run", **changed))
    assert "\n" not in str(caught.value)


def test_options_are_named_as_typed():
    config = json.loads('{"data": {"bands": ["a", "b"], "image_size": null}, "derive": true}')
    assert flat_config(config) == [
        ("--data.bands", "a b"),
        ("--data.image-size", "None"),
        ("--derive", "True"),
    ]
