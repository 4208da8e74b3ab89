"""Measure a trained head by retrieval, and save it with its teacher."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.files.write import atomic_write
from pcd_hub.image_size import format_size
from pcd_hub.method.metrics import retrieval_top1
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train.batches import describe_data
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.teacher.head.config import FIT_HEAD, HeadConfig
from pcd_hub.train.teacher.head.features import Images, PooledFeatures
from pcd_hub.train.teacher.head.preparing import HeadlessTeacher


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """A trained head, and what its record says."""

    folder: RunFolder
    config: HeadConfig
    config_name: str
    teacher: HeadlessTeacher
    head: nn.Sequential
    images: ImageSource
    num_held_out: int
    num_broken: int
    steps: int
    before: float
    """Retrieval top-1 of the held-out images with the teacher's pooled features, in [0, 1]."""
    after: float
    """The same with the head's vectors."""


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


def save_head(result: HeadResult) -> None:
    """Save the teacher with its head and record, check that it loads, and print its use.

    Raises:
        OSError: If it cannot be written.
    """
    folder = result.folder.path / "teacher"
    record = build_record(result)
    head = result.head.cpu()
    save_teacher(folder, result.teacher.backbone, head, record)
    atomic_write(result.folder.path / "record.json", json.dumps(record, indent=2) + "\n")
    config = result.config
    load_teacher(f"local-dir:{folder}", image_size=config.teacher.image_size)  # checks the head
    print(
        f"\nretrieval top-1 of {result.num_held_out} held-out images: {result.before:.1%} with the "
        f"teacher's pooled features, {result.after:.1%} with the head"
    )
    if result.after <= result.before:
        print("the head is no better: train it longer, on more images or with other views")
    print(f"\npcd-hub distill IMAGES --teacher local-dir:{folder}{_image_size(config)}")


def _image_size(config: HeadConfig) -> str:
    if config.teacher.image_size == config.data.image_size:
        return ""
    assert config.teacher.image_size is not None, "resolve() fills it in"
    size = format_size(config.teacher.image_size).replace(" x ", " ")
    return f" --teacher.image-size {size}"


def build_record(result: HeadResult) -> dict[str, Any]:
    """Build the record of teacher and head.

    The settings of the head's training are not at the top, where a teacher states its own.
    """
    facts, config = result.teacher.teacher.facts, result.config
    name = result.config_name if result.config_name in FIT_HEAD else "--config config.json"
    data = describe_data(result.images, config.data, result.folder.inputs["data"])
    return {
        "architecture": facts.architecture,
        "license": facts.license,
        "mean": list(facts.mean),
        "std": list(facts.std),
        **facts.origin,
        "backbone": {"source": facts.source, "sha256": facts.sha256},
        "head_training": {
            "recipe": f"python -m pcd_hub.train.teacher.head.fit {name}",
            "config": result.folder.recorded_config(),
            "data": {**data, "held_out": result.num_held_out, "broken": result.num_broken},
            "steps": result.steps,
            "retrieval_top1": {
                "images": result.num_held_out,
                "teacher": round(100 * result.before, 2),
                "head": round(100 * result.after, 2),
            },
            **result.folder.provenance(),
        },
    }
