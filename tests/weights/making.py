"""Small weights with a whole record, as a recipe would leave them."""

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from pcd_hub.image_size import ImageSize
from pcd_hub.weights.export import export_weight
from pcd_hub.weights.input_bands import InputBands
from pcd_hub.weights.layout import MANIFEST_FILE
from pcd_hub.weights.manifest import write_manifest
from pcd_hub.weights.record import Measurement, WeightRecord


def record(architecture: str = "test_resnet", **changed: Any) -> WeightRecord:
    """Complete and clean: it may be published."""
    whole = WeightRecord(
        name=f"{architecture}.pcd",
        architecture=architecture,
        created="2026-01-01T00:00:00+00:00",
        recipe="recipes/distill.py quickstart",
        config={"method": {"loss": "pixel_info_nce", "targets": "pixels"}, "run": {"seed": 0}},
        teacher={
            "source": "quickstart",
            "architecture": "resnet10t",
            "head": "Linear",
            "sha256": "a" * 64,
        },
        data={
            "source": "scenes:6400",
            "fingerprint": "6400 generated scenes of 96 px, seed 0",
            "images": 6400,
        },
        steps=400,
        images_seen=6400,
        seed=0,
        code={"pcd_hub": "0.1.0", "commit": "c" * 40, "dirty": False},
        versions={"torch": "2.6.0", "timm": "1.0.26"},
        hardware={"device": "CPU, 2 threads", "processes": 1, "seconds": 294},
        licenses=dict.fromkeys(("code", "weights", "teacher", "data"), "apache-2.0"),
        metrics={"scene_probe": dataclasses.asdict(measurement())},
    )
    return dataclasses.replace(whole, **changed)


def measurement(**changed: Any) -> Measurement:
    one = Measurement(
        task="linear segmentation probe",
        dataset="generated scenes, 10 classes",
        metric="mean IoU",
        unit="%",
        images=400,
        seeds=1,
        protocol="BatchNorm and one linear layer",
        command="python recipes/distill.py quickstart",
        subject="distilled student",
        means={"random weights": 17.04, "distilled student": 50.23, "teacher": 85.8},
    )
    return dataclasses.replace(one, **changed)


def exported(
    folder: Path,
    architecture: str = "test_resnet",
    model: nn.Module | None = None,
    image_size: ImageSize = 64,
    bands: InputBands | None = None,
    **changed: Any,
) -> Path:
    """An export with one picture; ``changed`` goes into the record."""
    model = model or timm.create_model(architecture, num_classes=0)
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "pca.png"
        Image.new("RGB", (8, 8), "red").save(picture)
        return export_weight(
            model.state_dict(),
            record(architecture, **changed),
            folder,
            image_size=image_size,
            bands=bands,
            pictures=[picture],
        )


def filled(value: float, folder: Path, **changed: Any) -> Path:
    """An export whose every weight is ``value``, so that a mixture would show."""
    model = timm.create_model("test_resnet", num_classes=0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(value)
    return exported(folder, model=model, **changed)


def files_of(folder: Path) -> dict[str, bytes]:
    """What a repository with this folder's files holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewritten(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A publisher's hostile folder: its manifest agrees with whatever lies there."""
    record = json.loads((folder / MANIFEST_FILE).read_text())["record"]
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if MANIFEST_FILE not in files:
        write_manifest(folder, record)
    return folder


def head(*widths: int, bias: bool = False, last_norm: bool = False) -> nn.Sequential:
    """As MoCo v3 has it: Linear, BatchNorm, ReLU, and so on."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        norm = nn.BatchNorm1d(after)
        nn.init.normal_(norm.running_mean, std=0.1)
        layers += [nn.Linear(before, after, bias=bias), norm, nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias))
    return nn.Sequential(
        *layers, *([nn.BatchNorm1d(widths[-1], affine=False)] if last_norm else [])
    )


def moco_state(architecture: str = "test_resnet", *, width: int = 96) -> dict[str, Tensor]:
    """As MoCo v3 saves it: momentum encoder with head, base encoder, predictor."""
    state = {}
    for branch in ("base_encoder", "momentum_encoder"):
        backbone = timm.create_model(architecture, num_classes=0)
        projector = head(backbone.num_features, width, 32, last_norm=True)
        for key, value in backbone.state_dict().items():
            state[f"module.{branch}.{key}"] = value
        for key, value in projector.state_dict().items():
            state[f"module.{branch}.fc.{key}"] = value
    for key, value in head(32, width, 32).state_dict().items():
        state[f"module.predictor.{key}"] = value
    return state


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def same_tensors(model: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
