"""Tiny runs with several students, and the separate runs that they must equal."""

import pytest
import timm
import torch

from pcd_hub.data.loader import training_batches
from pcd_hub.models.teachers import Teacher
from pcd_hub.train import batches as loading
from pcd_hub.train import networks
from tests.train.conftest import assert_same, run, trace

ARCHITECTURES = ("test_resnet", "test_vit")


@pytest.fixture
def several(tiny) -> list[str]:
    """Return the arguments of a tiny run without its student, and without the store."""
    left = [argument for argument in tiny if not argument.startswith("--student")]
    return [*left, "--data.held-out=0.2", "--run.no-store"]


@pytest.fixture
def dropping(monkeypatch):
    """Give every student random numbers to draw: stochastic depth."""
    create = timm.create_model

    def with_drop_path(name, **arguments):
        return create(name, drop_path_rate=0.3, **arguments)

    monkeypatch.setattr(networks.timm, "create_model", with_drop_path)


@pytest.fixture
def counted(monkeypatch):
    """Count the passes of teacher networks over training batches, and the open loaders."""
    counts = {"teacher": 0, "loader": 0}
    network_map = Teacher.network_map

    def counting(self, images):
        counts["teacher"] += len(images) == 16
        return network_map(self, images)

    def opening(*args, **options):
        counts["loader"] += 1
        return training_batches(*args, **options)

    monkeypatch.setattr(Teacher, "network_map", counting)
    monkeypatch.setattr(loading, "training_batches", opening)
    return counts


def separate(arguments, folder, architectures=ARCHITECTURES):
    """Train each student alone."""
    for architecture in architectures:
        run([*arguments, f"--student.arch={architecture}"], folder / architecture)
    return folder


def together(arguments, folder, *more, architectures=ARCHITECTURES):
    """Train all students in one pass."""
    return run([*arguments, f"--student.arch={','.join(architectures)}"], folder, *more)


def checkpoint(folder, step):
    file = folder / "checkpoints" / f"step_{step:08d}.pt"
    return torch.load(file, weights_only=True)


def assert_equal_runs(one, other, architectures=ARCHITECTURES, *, step=6):
    """Compare traces, scores, checkpoints and weights of each student."""
    for architecture in architectures:
        first, second = one / architecture, other / architecture
        assert len(trace(first)) == step
        assert trace(first) == trace(second)
        scores = [(folder / "held_out.jsonl").read_text() for folder in (first, second)]
        assert scores[0] == scores[1]
        assert_same(checkpoint(first, step), checkpoint(second, step))
        weights = [(f / "export" / "model.safetensors").read_bytes() for f in (first, second)]
        assert weights[0] == weights[1]
