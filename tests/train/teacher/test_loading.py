import json

import numpy as np
import pytest
import timm
import torch
from torch import nn

from pcd_hub.data.sources.open import open_source
from pcd_hub.errors import ConfigError, TeacherError
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_sources import memory
from pcd_hub.models.teacher_sources.choice import Choice
from pcd_hub.models.teacher_sources.module import teacher_from_module
from pcd_hub.train import distill
from pcd_hub.train.configs.command_line import parse_given
from pcd_hub.train.configs.distill import DISTILL
from tests.train.conftest import run

pytestmark = pytest.mark.usefixtures("no_pictures")


def configured(arguments: list[str]):
    _, config, given = parse_given(DISTILL, "quickstart", arguments)
    return {"config": config, "config_name": "quickstart", "given": given}


class Backbone(nn.Module):
    """Tokens of 8 px patches after a class token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return {"last_hidden_state": nn.functional.pad(tokens, (0, 0, 1, 0))}


def test_a_module_teaches_and_is_recorded(tiny, tmp_path):
    teacher = teacher_from_module(Backbone(), mean=(0.5,) * 3, std=(0.5,) * 3, name="mine")
    arguments = [*tiny[1:], f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"]
    (done,) = distill.run(**configured(arguments), teacher=teacher)
    assert done.teacher is teacher
    assert done.config.teacher.source == "module:mine"
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["teacher"]["source"] == "module:mine"
    assert record["teacher"]["sha256"] == teacher.facts.sha256
    assert json.loads((tmp_path / "run" / "config.json").read_text())["teacher"]["source"] == (
        "module:mine"
    )


def test_a_module_can_be_probed(tiny, tmp_path, short_probe):
    teacher = teacher_from_module(Backbone(), mean=(0.5,) * 3, std=(0.5,) * 3)
    arguments = [*tiny[1:], f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"]
    (done,) = distill.run(**configured([*arguments, "--probe-scenes=8"]), teacher=teacher)
    record = json.loads((done.folder.path / "record.json").read_text())
    means = record["metrics"]["scene_probe"]["means"]
    assert {"random weights", "distilled student"} <= means.keys()


def test_the_chosen_teacher_is_recorded_and_not_auto(tiny, tmp_path, monkeypatch):
    asked = []

    def choose(**situation):
        asked.append(situation)
        return Choice(tiny[0].removeprefix("--teacher.source="), "a test")

    monkeypatch.setattr("pcd_hub.train.teacher.loading.choose_teacher", choose)
    folder = run(["--teacher.source=auto", *tiny[1:]], tmp_path / "run")
    assert asked == [{"image_size": 32, "device_type": "cpu"}]
    assert json.loads((folder / "config.json").read_text())["teacher"]["source"] == (
        tiny[0].removeprefix("--teacher.source=")
    )


def test_where_no_teacher_is_reachable_nothing_is_written(tiny, tmp_path):
    with pytest.raises(TeacherError, match="HF_HUB_OFFLINE is set"):
        run(["--teacher.source=auto", *tiny[1:]], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_impossible_teacher_is_refused_before_the_first_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_host_memory", lambda: 10**6)
    with pytest.raises(TeacherError, match=r"needs 0.0 GiB .*use a smaller teacher"):
        run(["--teacher.source=timm:test_vit.r160_in1k", *tiny[1:]], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_warnings_are_logged_once_and_recorded(tiny, tmp_path, caplog):
    folder = run([*tiny, "--run.no-store"], tmp_path / "run")
    recorded = json.loads((folder / "record.json").read_text())["teacher"]["warnings"]
    unstated, small, untrained = recorded
    assert "states no mean and std" in unstated
    assert "images of 32 px, a 1 x 1 feature map; expected at least 128 px" in small
    assert "as random weights do" in untrained
    for warning in (unstated, small):
        assert caplog.text.count(warning) == 1


def test_a_normalisation_that_the_teacher_was_not_trained_with_is_named(tiny, tmp_path, caplog):
    """Its batch norms have seen the scenes with mean and std 0.5."""
    scenes = open_source("scenes:64")
    images = torch.stack([torch.from_numpy(np.array(scenes[row])) for row in range(64)])
    backbone = timm.create_model("test_resnet", num_classes=0)
    for norm in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        backbone((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    facts = {"architecture": "test_resnet", "license": "mit", "mean": [0.5] * 3, "std": [0.5] * 3}
    save_teacher(tmp_path / "teacher", backbone.state_dict(), None, facts)
    arguments = [f"--teacher.source=local-dir:{tmp_path / 'teacher'}", *tiny[1:], "--run.no-store"]
    run([*arguments, "--run.max-steps=1"], tmp_path / "right")
    assert "do not fit the teacher" not in caplog.text
    wrong = ["--teacher.mean", "0", "0", "0", "--teacher.std", "1", "1", "1"]
    folder = run([*arguments, *wrong, "--run.max-steps=1"], tmp_path / "wrong")
    (named,) = [
        warning
        for warning in json.loads((folder / "record.json").read_text())["teacher"]["warnings"]
        if "do not fit the teacher" in warning
    ]
    assert "with --teacher.mean 0.5 0.5 0.5 --teacher.std 0.5 0.5 0.5; try these" in named
    assert f"wrong teacher: {named}" in caplog.text
    (verdict,) = json.loads((folder / "record.json").read_text())["verdicts"]
    assert (verdict["kind"], verdict["is_bad"]) == ("wrong teacher", True)
    assert (
        f'- The last early verdict was "wrong teacher": {named}'
        in (folder / "report.md").read_text()
    )


def test_mean_and_std_of_the_command_line_are_used_and_recorded(tiny, tmp_path):
    given = ["--teacher.mean", "0.1", "0.2", "0.3", "--teacher.std", "1", "1", "0.5"]
    folder = run([*tiny, "--run.no-store", *given], tmp_path / "run")
    teacher = json.loads((folder / "record.json").read_text())["teacher"]
    assert teacher["mean"] == [0.1, 0.2, 0.3]
    assert teacher["std"] == [1, 1, 0.5]
    assert not [one for one in teacher["warnings"] if "mean and std" in one]
    with pytest.raises(ConfigError, match="--teacher.mean is set without --teacher.std"):
        run([*tiny, *given[:4]], tmp_path / "other")


def test_the_adaptor_of_the_head_is_recorded_and_refused_for_a_teacher_from_python(tiny, tmp_path):
    options = ["--teacher.adaptor=plain", "--run.max-steps=1", "--run.no-store"]
    folder = run(tiny, tmp_path / "plain", *options)
    record = json.loads((folder / "record.json").read_text())
    assert record["teacher"]["head"].endswith("ReLU-Linear (plain ReLU)")
    assert record["config"]["teacher"]["adaptor"] == "plain"
    teacher = teacher_from_module(Backbone(), mean=(0.5,) * 3, std=(0.5,) * 3)
    arguments = [*tiny[1:], *options, f"--run.output-dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match="adaptor plain is for a teacher by its source"):
        distill.run(**configured(arguments), teacher=teacher)
    assert not (tmp_path / "run").exists()
