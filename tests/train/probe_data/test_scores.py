"""Mean IoU during tiny distillations: stated everywhere, nothing changes, everything resumes."""

import json
import logging

import pytest
import torch
from torch import nn

from pcd_hub.train.held_out.unchanged import unchanged
from pcd_hub.train.probe_data.scores import ProbeScores
from tests.evaluate.drawn_sets import draw_segmentation
from tests.train.conftest import (
    assert_same,
    checkpoint,
    leave_out_pictures,
    resumed,
    run,
    trace,
)
from tests.train.probe_data.conftest import history

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def whole(probed, tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        return run(probed, tmp_path_factory.mktemp("whole") / "run")


def without_probe(arguments):
    return [each for each in arguments if not each.startswith("--probe-data")]


def stated(folder):
    return json.loads((folder / "record.json").read_text())["metrics"]["probe_data"]


def test_a_run_states_the_mean_iou_of_start_student_and_teacher(whole):
    found = history(whole)
    assert [line["step"] for line in found] == [0, 2, 4, 6]
    assert all(0 <= line["mean_iou"] <= line["pixel_accuracy"] <= 100 for line in found)
    table = stated(whole)
    assert table["means"].keys() == {"random weights", "distilled student", "teacher"}
    assert table["means"]["random weights"] == pytest.approx(found[0]["mean_iou"], abs=0.01)
    assert table["means"]["distilled student"] == pytest.approx(found[-1]["mean_iou"], abs=0.01)
    assert table["images"] == 5
    assert "(12 images)" in table["protocol"]
    assert "labels of 64 x 64" in table["protocol"]
    assert json.loads((whole / "config.json").read_text())["probe_data"]["image_size"] == 64
    report = (whole / "report.md").read_text()
    assert "## Mean IoU during the run" in report
    assert f"| 2 | {found[1]['mean_iou']:.1f} |" in report
    assert "Mean IoU of a linear probe on labelled images, %" in (whole / "report.html").read_text()


def test_every_measurement_is_a_line_of_the_log(probed, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="pcd_hub")
    found = history(run([*probed, "--run.max-steps=2"], tmp_path / "run"))
    said = [text for text in caplog.messages if "mean IoU of" in text]
    start, end = (f"{line['mean_iou']:.1f} %" for line in found)
    assert said == [
        f"step 0 of 2: test_resnet has a mean IoU of {start} on 5 labelled images",
        f"step 2 of 2: test_resnet has a mean IoU of {end} (start {start}) on 5 labelled images",
    ]


def test_measuring_changes_nothing_of_the_run(probed, whole, tmp_path):
    without = run(without_probe(probed), tmp_path / "without")
    assert trace(without) == trace(whole)
    one, other = (checkpoint(folder, 6) for folder in (whole, without))
    for part in ("distiller", "optimizer", "queue", "per_process"):
        assert_same(one[part], other[part])


@pytest.mark.parametrize("at", [3, 4, 5])
def test_a_resumed_run_has_the_same_scores(probed, whole, tmp_path, monkeypatch, at):
    again = resumed(probed, tmp_path / "again", monkeypatch, at=at)
    assert history(again) == history(whole)
    assert stated(again) == stated(whole)


def test_a_run_may_get_labelled_images_when_it_is_resumed(probed, whole, tmp_path):
    """The start is then measured at the end, for the record alone."""
    folder = run([*without_probe(probed), "--run.max-steps=4"], tmp_path / "run")
    run(probed, folder, "--run.resume")
    assert [line["step"] for line in history(folder)] == [6]
    assert stated(folder)["means"]["random weights"] == stated(whole)["means"]["random weights"]
    assert "--probe-data.source" in (folder / "changes.json").read_text()


def test_scores_of_other_labelled_images_do_not_count(probed, tmp_path, caplog):
    folder = run([*probed, "--run.max-steps=4"], tmp_path / "run")
    run([*probed, "--probe-data.num-images=4"], folder, "--run.resume")
    assert "the labelled images have changed; their earlier scores do not count" in caplog.text
    assert [line["step"] for line in history(folder)] == [6]
    assert stated(folder)["images"] == 4
    run([*probed, "--probe-data.num-images=5"], folder, "--run.resume")
    assert history(folder) == [], "it was finished: the curve of other images is no longer shown"


def test_students_in_one_pass_have_the_scores_of_separate_runs(probed, whole, tmp_path):
    several = run([*probed, "--student.arch=test_resnet,test_vit"], tmp_path / "several")
    assert history(several / "test_resnet") == history(whole)
    assert len(history(several / "test_vit")) == 4
    assert "mean IoU, %" in (several / "students.md").read_text()


def test_an_early_end_is_measured_as_well(probed, tmp_path, monkeypatch):
    monkeypatch.setattr("pcd_hub.train.held_out.held_out.plateau", lambda losses: len(losses) >= 2)
    early = ["--data.held-out=0.2", "--run.stop-on-plateau", "--run.max-steps=30"]
    folder = run([*probed, *early], tmp_path / "run")
    last = json.loads((folder / "record.json").read_text())["held_out"]["last_step"]
    assert last < 30
    assert history(folder)[-1]["step"] == last


def test_a_module_is_told_that_training_goes_on():
    """Some of timm's clear in ``train`` what they keep in eval mode."""

    class Keeps(nn.Linear):
        kept = False

        def train(self, mode=True):
            self.kept = self.kept and not mode
            return super().train(mode)

    keeps = Keeps(1, 1)
    network = nn.Sequential(keeps, nn.Dropout())
    network[1].eval()
    with unchanged(network, torch.device("cpu")):
        assert not any(module.training for module in network.modules())
        keeps.kept = True
    assert [module.training for module in network.modules()] == [True, True, False]
    assert keeps.kept is False


def test_at_most_so_many_images_are_spread_evenly(probed, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ProbeScores, "measure", lambda self, _: seen.append(self.probe))
    run([*probed, "--probe-data.num-images=3", "--run.max-steps=1"], tmp_path / "run")
    probe = seen[0]
    assert (len(probe.train), len(probe.test)) == (3, 3)
    whole_set = draw_segmentation(tmp_path / "again")
    names = sorted(path.name for path in (whole_set / "images" / "train").iterdir())
    taken = [probe.train.image_name(row).rpartition("/")[2] for row in range(3)]
    assert taken == [names[0], names[4], names[8]]
    assert probe.train.name.endswith("/train, 3 of 12")
