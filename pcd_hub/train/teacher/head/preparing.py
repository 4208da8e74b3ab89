"""Check teacher, images and places of a head's training before anything is computed."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from pcd_hub.data.sources.held_out import hash_name
from pcd_hub.data.sources.open import open_sources
from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.errors import ConfigError, DataError, TeacherError
from pcd_hub.files.writable import check_writable
from pcd_hub.models.grid import pixel_grid
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.models.teacher_sources.matching import input_size
from pcd_hub.models.teacher_sources.memory import check_teacher_memory
from pcd_hub.models.teacher_sources.parts import build_model, has_fixed_size
from pcd_hub.models.teachers import Teacher, noise_images
from pcd_hub.models.tensor_files import State
from pcd_hub.train.teacher.cache.folders import complete_bytes
from pcd_hub.train.teacher.cache.key import Facts, cache_name
from pcd_hub.train.teacher.head.config import HeadConfig, HeadDataConfig, HeadTeacherConfig
from pcd_hub.train.teacher.head.features import PAIRS_PER_BATCH, Images, record_bytes
from pcd_hub.weights.store import expanded

log = logging.getLogger("pcd_hub")

MIN_IMAGES = 20
"""Fewest images; a retrieval among fewer than ten says nothing."""
_MIN_HELD_OUT, _MAX_HELD_OUT = 10, 2000
_MIN_COSINE = 0.999


@dataclass(frozen=True, kw_only=True)
class HeadlessTeacher:
    """A teacher without a head, and the weights from which a teacher's folder is made."""

    teacher: Teacher
    backbone: State
    """Weights with timm's keys, at the model's own input size."""


def open_images(config: HeadConfig) -> ImageSource:
    """Open the images.

    Raises:
        DataError: If they are a stream, or too few.
    """
    source = open_sources(config.data.source)
    named = " ".join(config.data.source)
    if not isinstance(source, ImageSource):
        raise DataError(f"{named} is a stream: expected a finite set of images, such as a folder")
    if len(source) < MIN_IMAGES:
        raise DataError(f"{named} has {len(source)} images, expected at least {MIN_IMAGES}")
    return source


def split(images: ImageSource, share: float) -> tuple[Images, Images]:
    """Return the images to train on, and those to hold out, which their names decide.

    Args:
        images: All images.
        share: Share of the images to hold out.
    """
    hashes = np.array([hash_name(images.name(index)) for index in range(len(images))])
    count = min(max(_MIN_HELD_OUT, round(share * len(images))), _MAX_HELD_OUT)
    order = np.argsort(hashes, kind="stable")
    return np.sort(order[count:]), np.sort(order[:count])


def load_headless(
    config: HeadTeacherConfig, data: HeadDataConfig, *, device: torch.device
) -> HeadlessTeacher:
    """Load the teacher, and check that a folder can store it.

    Args:
        config: The teacher's settings.
        data: The settings of the views.
        device: Where it will run.

    Raises:
        TeacherError: If it does not load or fit into memory, has a head, or is no plain timm model.
    """
    size = input_size(data.image_size, config.image_size)
    views = 2 * PAIRS_PER_BATCH
    check_teacher_memory(config.source, image_size=size, batch_size=views, device=device)
    load = functools.partial(load_teacher, mean=config.mean, std=config.std)
    teacher = load(config.source, image_size=size)
    source = teacher.facts.source
    if teacher.facts.head != "none":
        raise TeacherError(
            f"{source} has a head ({teacher.facts.head}), expected a teacher without one; distil "
            "it as it is"
        )
    own = teacher.grid.model
    if has_fixed_size(getattr(own, "pretrained_cfg", {})):  # its position embeddings are resampled
        own = load(source).grid.model
    backbone = {key: value.clone() for key, value in own.state_dict().items()}
    images = noise_images(teacher, size)
    try:
        rebuilt = build_model(teacher.facts.architecture, backbone, source, size).eval()
        grid = pixel_grid(rebuilt, image_size=size)
    except ValueError as error:
        raise TeacherError(
            f"{source} cannot be stored with a head, as timm's {teacher.facts.architecture} "
            f"without further arguments is another network ({error})"
        ) from error
    with torch.no_grad():
        cosine = F.cosine_similarity(grid(images), teacher.grid(images)).min().item()
    if not cosine >= _MIN_COSINE:
        raise TeacherError(
            f"{source} cannot be stored with a head: the feature map of the stored backbone has "
            f"the cosine {cosine:.4f} with its own, expected at least {_MIN_COSINE}"
        )
    teacher.fold_batch_norms(size)
    teacher.set_sizes(data.image_size, input_size=size)
    return HeadlessTeacher(teacher=teacher, backbone=backbone)


def features_place(config: HeadConfig, run_folder: Path) -> Path:
    """Return the folder that holds the folder of the features."""
    return expanded(config.teacher.cache) if config.teacher.cache else run_folder / "features"


def check_room(config: HeadConfig, facts: Facts, *, network: nn.Module) -> None:
    """Check that features and teacher can be written, before the run's folder is made.

    Args:
        config: The configuration.
        facts: Facts of the features.
        network: The head, whose checkpoints are in the run's folder, too.

    Raises:
        ConfigError: If a folder cannot be written, or has too little space.
    """
    run_folder = config.run.output_dir or Path("runs")
    place = features_place(config, run_folder)
    number = facts["images"]["number"] * facts["views"]["number"]
    size = record_bytes(facts["teacher"]["channels"])
    needed = number * (size + 4) - complete_bytes(place / cache_name(facts), record_bytes=size)
    if not config.teacher.cache:
        needed += 4 * sum(value.nbytes for value in network.state_dict().values())
    remedy = "name another --teacher.cache, or lower --data.view-epochs"
    check_writable(place, what="the folder of the features", remedy=remedy, num_bytes=needed)


def check_processes(accelerator: Accelerator) -> None:
    """Check that there is one process.

    Raises:
        ConfigError: If there are several.
    """
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"{accelerator.num_processes} processes: expected 1, as a head takes minutes; start "
            "it with python instead of accelerate launch"
        )
