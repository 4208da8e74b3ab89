"""Measure a trained head by retrieval, and save it with its teacher."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.files.write import atomic_write
from pcd_hub.image_size import format_size
from pcd_hub.method.metrics import retrieval_top1
from pcd_hub.method.simclr import ProjectedVectors
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train.batches import describe_data
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.teacher.head.config import FIT_HEAD, HeadConfig
from pcd_hub.train.teacher.head.features import Images, PooledFeatures
from pcd_hub.train.teacher.head.preparing import HeadlessTeacher


@dataclass(kw_only=True)
class HeadFitting:
    """A training of a head that is ready to start."""

    config: HeadConfig
    config_name: str
    accelerator: Accelerator
    folder: RunFolder
    images: ImageSource
    plan: BatchPlan
    teacher: HeadlessTeacher
    features: PooledFeatures
    network: ProjectedVectors
    """Head and loss."""
    num_broken: int = 0
    """Images that cannot be read."""


def measure_retrieval(
    features: PooledFeatures, images: Images, head: nn.Module, device: torch.device
) -> float:
    """Return how often a view finds the other of its pair among those of all images.

    Args:
        features: The features.
        images: The images.
        head: Head in eval mode, or the identity.
        device: Where the head is.

    Returns:
        The fraction in [0, 1], mean over the pairs of views.
    """
    scores = []
    with torch.no_grad():
        for pair in range(features.view_epochs):
            views = (features.of(images, images * 0 + 2 * pair + side) for side in (0, 1))
            first, second = (head(view.to(device)) for view in views)
            scores.append(retrieval_top1(first, second))
    return sum(scores) / len(scores)


def save_head(f: HeadFitting, held_out: Images) -> None:
    """Measure the head, save the teacher with it, check that it loads, and print its use.

    Raises:
        OSError: If it cannot be written.
    """
    folder, head, device = f.folder.path / "teacher", f.network.head.eval(), f.accelerator.device
    before, after = (
        measure_retrieval(f.features, held_out, each, device) for each in (nn.Identity(), head)
    )
    retrieval = {
        "images": len(held_out),
        "teacher": round(100 * before, 2),
        "head": round(100 * after, 2),
    }
    record = build_record(f, retrieval)
    save_teacher(folder, f.teacher.backbone, head.cpu(), record)
    atomic_write(f.folder.path / "record.json", json.dumps(record, indent=2) + "\n")
    load_teacher(f"local-dir:{folder}", image_size=f.config.teacher.image_size)  # checks the head
    print(
        f"\nretrieval top-1 of {len(held_out)} held-out images: {before:.1%} with the teacher's "
        f"pooled features, {after:.1%} with the head"
    )
    if after <= before:
        print("the head is no better: train it longer, on more images or with other views")
    print(f"\npcd-hub distill IMAGES --teacher local-dir:{folder}{_image_size(f.config)}")


def _image_size(config: HeadConfig) -> str:
    if config.teacher.image_size == config.data.image_size:
        return ""
    assert config.teacher.image_size is not None, "resolve() fills it in"
    size = format_size(config.teacher.image_size).replace(" x ", " ")
    return f" --teacher.image-size {size}"


def build_record(f: HeadFitting, retrieval: dict[str, Any]) -> dict[str, Any]:
    """Build the record of teacher and head.

    The settings of the head's training are not at the top, where a teacher states its own.
    """
    facts, config = f.teacher.teacher.facts, f.config
    name = f.config_name if f.config_name in FIT_HEAD else "--config config.json"
    data = describe_data(f.images, config.data, f.folder.inputs["data"])
    return {
        "architecture": facts.architecture,
        "license": facts.license,
        "mean": list(facts.mean),
        "std": list(facts.std),
        **facts.origin,
        "backbone": {"source": facts.source, "sha256": facts.sha256},
        "head_training": {
            "recipe": f"python -m pcd_hub.train.teacher.head.fit {name}",
            "config": f.folder.recorded_config(),
            "data": {**data, "held_out": retrieval["images"], "broken": f.num_broken},
            "steps": f.plan.total_steps,
            "retrieval_top1": retrieval,
            **f.folder.provenance(),
        },
    }
