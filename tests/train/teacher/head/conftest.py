"""Tiny teachers without a head, and the arguments of a run that takes seconds."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file


def headless(folder: Path, arch: str = "test_resnet", *, size: int = 64, **arguments) -> Path:
    """Write a timm folder with random weights."""
    torch.manual_seed(3)
    is_vit = arch == "test_vit"
    model = timm.create_model(arch, num_classes=0, **arguments)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"num_classes": 0, "classifier": "head" if is_vit else "fc", "license": "mit"}
    cfg |= {"input_size": [3, size, size], "fixed_input_size": is_vit}
    cfg |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": arch, "num_classes": 0, "pretrained_cfg": cfg}
    config |= {"model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def resnet(tmp_path_factory) -> str:
    return f"local-dir:{headless(tmp_path_factory.mktemp('teachers') / 'resnet')}"


@pytest.fixture(scope="session")
def tiny_head(resnet) -> list[str]:
    return [
        "scenes:70",
        f"--teacher={resnet}",
        "--data.image-size=32",
        "--data.num-workers=0",
        "--method.head-width=24",
        "--method.dim=16",
        "--optim.global-batch-size=16",
        "--speed.precision=fp32",
        "--run.max-steps=8",
        "--run.log-every-steps=1",
        "--run.checkpoint-every-steps=4",
    ]
