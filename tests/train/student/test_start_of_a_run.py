"""Runs that start from weights, and steps that train the head alone."""

import json
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState

from pcd_hub.errors import CheckpointError, StudentError
from pcd_hub.models import timm_loading
from pcd_hub.train import distill
from pcd_hub.train.student import weights
from tests.train.conftest import assert_same, run, trace

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(autouse=True)
def own_precision():
    """A process reads its precision once, and other tests have another one."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def distilled(tiny, tmp_path_factory) -> Path:
    """Folder of a finished run."""
    AcceleratorState._reset_state()
    return run(tiny, tmp_path_factory.mktemp("first") / "run", "--run.no-store")


@pytest.fixture
def finished(monkeypatch) -> list[distill.Distillation]:
    """The distillations that runs have finished, without export."""
    seen = []
    monkeypatch.setattr(distill, "save_weight", lambda d, *_, **__: seen.append(d))
    return seen


def checkpoint(folder: Path, step: int) -> dict:
    return torch.load(folder / "checkpoints" / f"step_{step:08}.pt", weights_only=True)


def test_a_student_starts_with_the_features_of_the_distilled_one(
    tiny, distilled, tmp_path, finished
):
    start_option = f"--student.weights=local-dir:{distilled / 'export'}"
    run([*tiny, start_option, "--run.max-steps=1"], tmp_path / "run")
    trained = checkpoint(distilled, 6)["distiller"]
    start = finished[0].start.state_dict()
    assert all(torch.equal(start[key], trained[f"student.model.{key}"]) for key in start)
    assert finished[0].start_label == "start (test_resnet.pcd_quickstart)"
    assert trace(tmp_path / "run")[0]["loss"] != trace(distilled)[0]["loss"]


def test_the_head_does_not_depend_on_the_start(tiny, distilled, tmp_path, finished):
    run([*tiny, "--run.max-steps=1"], tmp_path / "random")
    start_option = f"--student.weights=local-dir:{distilled / 'export'}"
    run([*tiny, start_option, "--run.max-steps=1", "--optim.lr-per-256=1e-12"], tmp_path / "run")
    heads = [d.distiller.head.state_dict() for d in finished]
    key = next(iter(heads[0]))
    torch.testing.assert_close(heads[0][key], heads[1][key], atol=1e-2, rtol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_the_head_is_trained_alone_for_a_share_of_the_steps(tiny, tmp_path, finished, optimizer):
    options = [f"--optim.name={optimizer}", "--optim.head-only-share=0.5"]
    folder = run([*tiny, *options], tmp_path / "run")
    start = finished[0].start.state_dict()
    trained = [key for key, value in start.items() if "running" not in key and value.ndim]
    half, whole = (checkpoint(folder, step)["distiller"] for step in (3, 6))
    assert all(torch.equal(start[key], half[f"student.model.{key}"]) for key in trained)
    moved = [key for key in trained if not torch.equal(start[key], whole[f"student.model.{key}"])]
    assert {"conv1.0.weight", "layer4.0.conv1.weight"} <= {*moved}
    assert len({line["loss"] for line in trace(folder)}) == 6, "the head learns from the first step"
    uninterrupted, lines = checkpoint(folder, 6), trace(folder)
    for name in ("step_00000006.pt", "step_00000006.pt.sha256"):
        (folder / "checkpoints" / name).unlink()
    run([*tiny, *options], folder, "--run.resume")
    again = checkpoint(folder, 6)
    assert trace(folder) == lines
    for part in ("distiller", "optimizer", "queue"):
        assert_same(again[part], uninterrupted[part])


def test_a_run_that_is_made_longer_does_not_train_its_head_alone_again(
    tiny, tmp_path, finished, monkeypatch
):
    options, seen = ["--optim.head-only-share=0.5"], []
    real = distill.training_step

    def watched(*arguments, head_only):
        seen.append(head_only)
        return real(*arguments, head_only=head_only)

    monkeypatch.setattr(distill, "training_step", watched)
    folder = run([*tiny, *options], tmp_path / "run")
    assert seen == [True] * 3 + [False] * 3
    seen.clear()
    run([*tiny, *options, "--run.max-steps=18"], folder, "--run.resume")
    assert seen == [False] * 12


def test_the_configuration_holds_the_start(tiny, distilled, tmp_path, finished):
    source = f"local-dir:{distilled / 'export'}"
    folder = run([*tiny, f"--student.weights={source}", "--run.max-steps=1"], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    assert config["student"]["weights"] == source
    assert config["optim"]["head_only_share"] == 0.0


@pytest.mark.usefixtures("short_probe")
def test_record_and_card_name_the_start(tiny, distilled, tmp_path, capsys):
    source = f"local-dir:{distilled / 'export'}"
    options = [f"--student.weights={source}", "--run.max-steps=1", "--run.no-store"]
    options += ["--data.source=scenes:300", "--data.held-out=0.1", "--probe-scenes=8"]
    folder = run([*tiny, *options], tmp_path / "run")
    record = json.loads((folder / "record.json").read_text())
    first = json.loads((distilled / "record.json").read_text())
    start = record["start"]
    assert (start["source"], start["name"]) == (source, "test_resnet.pcd_quickstart")
    assert start["license"] == record["licenses"]["start"] == first["licenses"]["weights"]
    assert "start" not in first["licenses"]
    assert first["start"] == {}
    label = "start (test_resnet.pcd_quickstart)"
    assert label in record["metrics"]["scene_probe"]["means"]
    assert label in record["metrics"]["held_out"]["means"]
    printed = capsys.readouterr().out
    assert label in printed
    card = (folder / "export" / "README.md").read_text()
    assert "The training started from test_resnet.pcd_quickstart." in card
    assert "| start | not stated |" in card
    assert "base_model" not in card, "it is in no repository"


def test_a_resumed_run_needs_the_same_start(tiny, distilled, tmp_path, finished):
    file = tmp_path / "start.pth"
    state = checkpoint(distilled, 6)["distiller"]
    torch.save(state, file)
    options = [*tiny, f"--student.weights={file}"]
    folder = run(options, tmp_path / "run")
    whole, lines = checkpoint(folder, 6), trace(folder)
    for name in ("step_00000006.pt", "step_00000006.pt.sha256"):
        (folder / "checkpoints" / name).unlink()
    run(options, folder, "--run.resume")
    assert trace(folder) == lines
    assert_same(checkpoint(folder, 6)["distiller"], whole["distiller"])
    assert finished[0].start_label == finished[1].start_label == "start (start.pth)"
    with pytest.raises(CheckpointError, match=r"another --student.weights \(.*start.pth, now none"):
        run(tiny, folder, "--run.resume")
    torch.save({key: value + 1 for key, value in state.items()}, file)
    with pytest.raises(CheckpointError, match="the start changed after step 6: the run began with"):
        run(options, folder, "--run.resume")
    file.unlink()
    with pytest.raises(StudentError, match="start.pth: no such file"):
        run(options, folder, "--run.resume")


def test_the_resolved_name_of_the_start_is_recorded_and_resumed(tiny, tmp_path, monkeypatch):
    model = timm.create_model("test_resnet", num_classes=0)
    monkeypatch.setattr(weights, "create_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(timm_loading, "probe_hub", lambda: "")
    options = [*tiny, "--student.weights=pretrained", "--run.no-store"]
    folder = run([*options, "--run.max-steps=3"], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    assert config["student"]["weights"] == "test_resnet.r160_in1k"
    run([*options, "--run.max-steps=4"], folder, "--run.resume")
    record = json.loads((folder / "record.json").read_text())
    assert record["start"]["hub_id"] == "timm/test_resnet.r160_in1k"
    assert record["licenses"]["start"] == "apache-2.0"
    card = (folder / "export-2" / "README.md").read_text()
    assert "base_model: timm/test_resnet.r160_in1k\nbase_model_relation: finetune\n" in card
    link = "[test_resnet.r160_in1k](https://huggingface.co/timm/test_resnet.r160_in1k)"
    assert f"The training started from {link}." in card
