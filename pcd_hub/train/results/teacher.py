"""Save a pre-trained encoder as a teacher: folder ``teacher/``, and MoCo v3's checkpoint layout."""

import copy
import json
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.files.write import atomic_write
from pcd_hub.method.encoder import ProjectedEncoder
from pcd_hub.models.entries import entry_cfg
from pcd_hub.models.grid import PixelGrid
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.tensor_files import writing_tensors
from pcd_hub.report.scene_probe import probe_backbones
from pcd_hub.train.batches import describe_data, only_scenes
from pcd_hub.train.configs.contrast import CONTRAST
from pcd_hub.train.contrast_parts import Pretraining


def save_pretrained(p: Pretraining) -> None:
    """Probe the encoder, save it as a teacher with its record, and print how to distil it."""
    folder = p.folder.path
    encoder = p.momentum_encoder or p.contrast.base_encoder
    backbone = plain_backbone(cast("PixelGrid", encoder.pixels).model, p.config.encoder.arch)
    head = None  # of a classifier, the backbone alone
    if isinstance(encoder, ProjectedEncoder):
        head = copy.deepcopy(encoder.fc).cpu().eval().half()
    metrics = probe(p, backbone, folder / "pictures" / "probe.png") if p.config.probe_scenes else {}
    record = build_record(p, metrics)
    halves = {key: _half(value) for key, value in backbone.state_dict().items()}
    save_teacher(folder / "teacher", halves, head, record)
    atomic_write(folder / "record.json", json.dumps(record, indent=2) + "\n")
    if p.momentum_encoder is not None:
        state = moco_state(p.contrast, p.momentum_encoder)
        file = folder / "teacher.pth.tar"
        with writing_tensors(file):
            torch.save({"arch": p.config.encoder.arch, "state_dict": state}, file)
    print(f"\npcd-hub distill --teacher.source local-dir:{folder / 'teacher'}")


def plain_backbone(backbone: nn.Module, arch: str) -> nn.Module:
    """Load the weights into a new timm model: no SyncBatchNorm, contiguous, on the CPU."""
    plain = timm.create_model(arch, pretrained=False, num_classes=0)
    plain.load_state_dict(backbone.state_dict(), strict=True)
    return plain.eval()


def moco_state(contrast: nn.Module, momentum_encoder: ProjectedEncoder) -> dict[str, Tensor]:
    """Return all weights under MoCo v3's own names."""
    named = {
        **contrast.state_dict(),
        **{f"momentum_encoder.{key}": v for key, v in momentum_encoder.state_dict().items()},
    }
    return {
        f"module.{key.replace('pixels.model.', '')}": value.cpu().contiguous()
        for key, value in named.items()
    }


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def recipe(p: Pretraining) -> str:
    """Return the command that repeats the run with the installed package."""
    name = p.config_name if p.config_name in CONTRAST else "--config config.json"
    return f"python -m pcd_hub.train.contrast {name}"


def probe(p: Pretraining, trained: nn.Module, picture: Path) -> dict[str, Any]:
    """Compare random weights and pre-trained backbone by a linear probe on generated scenes."""
    cfg = entry_cfg(p.config.encoder.arch)
    backbones = [
        EvaluatedModel(name=name, model=model, mean=cfg.mean, std=cfg.std)
        for name, model in (("random weights", p.random_start), ("pre-trained", trained))
    ]
    return {
        "scene_probe": probe_backbones(
            backbones,
            subject="pre-trained",
            num_scenes=p.config.probe_scenes,
            picture=picture,
            command=recipe(p),
        )
    }


def build_record(p: Pretraining, metrics: dict[str, Any]) -> dict[str, Any]:
    """Build the record of the teacher: its provenance and measurements."""
    config = p.config
    cfg = entry_cfg(config.encoder.arch)
    on_scenes = only_scenes(config.data.source)
    return {
        "architecture": config.encoder.arch,
        "license": "apache-2.0" if on_scenes else "not stated",
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "recipe": recipe(p),
        "config": p.folder.recorded_config(),
        "data": describe_data(p.source, config.data, p.folder.inputs["data"]),
        "steps": p.plan.total_steps,
        "images_seen": p.plan.total_steps * config.optim.global_batch_size,
        "metrics": metrics,
        **p.folder.provenance(),
    }
