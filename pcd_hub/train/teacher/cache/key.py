"""What a cache depends on: teacher, sizes, images and views.

Two runs share a cache if and only if all of it is equal. The output for two noise images is
compared as well, because the code of a network may change without its weights.
"""

import dataclasses
import hashlib
import json
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pcd_hub.image_size import height_width
from pcd_hub.models.teachers import Teacher
from pcd_hub.train.configs.pretraining import DataConfig

CODE_VERSION = 1
"""Raise it when views or records change."""
_MIN_COSINE = 0.9999

Facts = dict[str, Any]
"""Plain JSON values."""


def cache_facts(
    teacher: Teacher,
    data: DataConfig,
    *,
    images: str,
    num_images: int,
    view_seed: int,
    values: str,
    precision: str,
    resident_side: int | None = None,
) -> Facts:
    """Return everything that a cache depends on.

    Args:
        teacher: The teacher, matched to the student.
        data: The resolved settings of images and views.
        images: Fingerprint of the images.
        num_images: Number of the images.
        view_seed: Seed of the views.
        values: Format of the records' values.
        precision: Precision in which the teacher runs.
        resident_side: Short side of resident images; None if the images are read from their files.
    """
    facts, size = teacher.facts, data.image_size
    bands = None if teacher.bands is None else teacher.bands.tolist()
    return _plain(
        {
            "version": CODE_VERSION,
            "values": values,
            "teacher": {
                "architecture": facts.architecture,
                "sha256": facts.sha256,
                "head": facts.head,
                "mean": facts.mean,
                "std": facts.std,
                "bands": bands,
                "input_size": height_width(teacher.input_size or size),
                "grid": teacher.grid_size(size),
                "channels": teacher.num_channels,
                "precision": precision,
            },
            "images": {
                "fingerprint": images,
                "number": num_images,
                "bands": data.bands,
                "band_range": data.band_range,
            },
            "views": {
                "size": height_width(size),
                "seed": view_seed,
                "number": data.view_epochs,
                "policies": [dataclasses.asdict(policy) for policy in data.view_policies()],
                "resident_side": resident_side,
            },
        }
    )


def cache_name(facts: Facts) -> str:
    """Return the folder's name of the cache with these facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    architecture = "".join(c if c.isalnum() else "_" for c in facts["teacher"]["architecture"])
    return f"{architecture[:60]}-{digest[:16]}"


def teacher_output(teacher: Teacher, data: DataConfig) -> list[float]:
    """Return the teacher's pooled, normalised output for two noise images, one after the other."""
    generator = torch.Generator().manual_seed(0)
    size = height_width(data.image_size)
    images = torch.rand(2, len(data.bands), *size, generator=generator)
    return F.normalize(_pooled(teacher, images), dim=1).flatten().tolist()


def same_output(one: list[float], other: list[float]) -> bool:
    """Return whether two results of :func:`teacher_output` are equal up to rounding."""
    if len(one) != len(other):
        return False
    cosines = F.cosine_similarity(torch.tensor(one).view(2, -1), torch.tensor(other).view(2, -1))
    return bool((cosines >= _MIN_COSINE).all())


def _pooled(teacher: Teacher, images: Tensor) -> Float[Tensor, "2 c"]:
    return teacher(images.to(teacher.mean.device)).float().mean((2, 3)).cpu()


def _plain(facts: Facts) -> Facts:
    return json.loads(json.dumps(facts))
