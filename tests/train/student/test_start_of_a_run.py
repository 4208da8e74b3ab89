"""Runs that start from weights, and steps that train the head alone."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from pcd_hub.train import distill
from tests.train.conftest import assert_same, run, trace


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
    monkeypatch.setattr(distill, "save_weight", lambda d, _: seen.append(d))
    return seen


def checkpoint(folder: Path, step: int) -> dict:
    return torch.load(folder / "checkpoints" / f"step_{step:08}.pt", weights_only=True)


def test_a_student_starts_with_the_features_of_the_distilled_one(
    tiny, distilled, tmp_path, finished
):
    weights = f"--student.weights=local-dir:{distilled / 'export'}"
    run([*tiny, weights, "--run.max-steps=1"], tmp_path / "run")
    trained = checkpoint(distilled, 6)["distiller"]
    start = finished[0].start.state_dict()
    assert all(torch.equal(start[key], trained[f"student.model.{key}"]) for key in start)
    assert finished[0].start_label == "start (test_resnet.pcd)"
    assert trace(tmp_path / "run")[0]["loss"] != trace(distilled)[0]["loss"]


def test_the_head_does_not_depend_on_the_start(tiny, distilled, tmp_path, finished):
    run([*tiny, "--run.max-steps=1"], tmp_path / "random")
    weights = f"--student.weights=local-dir:{distilled / 'export'}"
    run([*tiny, weights, "--run.max-steps=1", "--optim.lr-per-256=1e-12"], tmp_path / "run")
    heads = [d.distiller.head.state_dict() for d in finished]
    key = next(iter(heads[0]))
    torch.testing.assert_close(heads[0][key], heads[1][key], atol=1e-2, rtol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_the_head_is_trained_alone_for_a_share_of_the_steps(tiny, tmp_path, finished, optimizer):
    options = [f"--optim.name={optimizer}", "--optim.head-only-share=0.5"]
    folder = run([*tiny, *options], tmp_path / "run")
    start = finished[0].start.state_dict()
    weights = [key for key, value in start.items() if "running" not in key and value.ndim]
    half, whole = (checkpoint(folder, step)["distiller"] for step in (3, 6))
    assert all(torch.equal(start[key], half[f"student.model.{key}"]) for key in weights)
    moved = [key for key in weights if not torch.equal(start[key], whole[f"student.model.{key}"])]
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


def test_the_configuration_holds_the_start(tiny, distilled, tmp_path, finished):
    weights = f"local-dir:{distilled / 'export'}"
    folder = run([*tiny, f"--student.weights={weights}", "--run.max-steps=1"], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    assert config["student"]["weights"] == weights
    assert config["optim"]["head_only_share"] == 0.0
