"""Tiny runs of the real recipes."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from pcd_hub.models.teachers import save_teacher


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A teacher of 0.5 M parameters with a trained head's shape, at random start."""
    torch.manual_seed(7)
    backbone = timm.create_model("test_resnet", num_classes=0)
    head = nn.Sequential(nn.Linear(96, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    folder = tmp_path_factory.mktemp("teacher")
    save_teacher(
        folder, backbone.state_dict(), head, {"architecture": "test_resnet", "license": "mit"}
    )
    return folder


@pytest.fixture
def tiny(tiny_teacher) -> list[str]:
    """Arguments of a run of seconds."""
    return [
        f"--teacher.source=local-dir:{tiny_teacher}",
        "--student.arch=test_resnet",
        "--data.source=scenes:64",
        "--data.image-size=32",
        "--data.num-workers=0",
        "--data.min-crop-area=0.2",
        "--data.max-crop-area=1.0",
        "--method.temperature=0.2",
        "--method.head=mocov3",
        "--method.queue-length=32",
        "--method.head-width=24",
        "--optim.name=adamw",
        "--optim.lr-per-256=0.02",
        "--optim.global-batch-size=8",
        "--run.max-steps=6",
        "--run.log-every-steps=1",
        "--run.checkpoint-every-steps=3",
        "--probe-scenes=0",
    ]


def trace(folder: Path) -> list[dict]:
    """What metrics.jsonl holds, without the timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "loss", "lr")} for line in lines]
