"""Choose, check and load the teacher of a distillation."""

import contextlib
import dataclasses
import logging
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.multiband.names import RGB, teacher_places
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.errors import ConfigError
from pcd_hub.image_size import ImageSize, height_width
from pcd_hub.models.grid import FinestMap
from pcd_hub.models.teacher_loading import load_matched_teacher
from pcd_hub.models.teacher_sources.choice import AUTO, choose_teacher
from pcd_hub.models.teacher_sources.matching import input_size, match_other_size, match_teacher
from pcd_hub.models.teacher_sources.memory import check_teacher_memory
from pcd_hub.models.teacher_sources.normalisation_fit import (
    normalisation_fit_warning,
    untrained_warning,
)
from pcd_hub.models.teachers import Teacher, grid_size
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.held_out.images import CentreCrop
from pcd_hub.train.launch import on_main_process

log = logging.getLogger("pcd_hub")

_NORMALISATION_IMAGES = 32
"""Images that show whether the teacher's normalisation is right."""


def load_teacher(
    config: DistillConfig,
    student: FinestMap,
    *,
    plan: BatchPlan,
    source: ImageSource | ImageStream,
    accelerator: Accelerator,
    given: Teacher | None = None,
) -> Teacher:
    """Load the teacher with its feature map at the student's resolution.

    Args:
        config: The configuration, with a resolved ``teacher.source``.
        student: The student, whose finest distilled map sets the resolution.
        plan: The run's steps, for the batch size.
        source: The images, of which a few are read to check the teacher's normalisation.
        accelerator: The run's Accelerator, on whose device the teacher will run.
        given: A teacher from Python, which is matched instead.

    Raises:
        ConfigError: If the loss compares the locations of an image and there is only one, the
            teacher knows none of the bands, or a teacher from Python cannot be adapted.
        TeacherError: If it does not load, or its weights do not fit into memory.
    """
    bands = config.data.bands
    places = teacher_places(bands, config.teacher.bands)
    sizes: dict[str, Any] = {
        "image_size": config.data.image_size,
        "teacher_image_size": config.teacher.image_size,
    }
    if given is not None:
        if config.teacher.adaptor != "spatial":
            raise ConfigError(
                f"--teacher.adaptor {config.teacher.adaptor} is for a teacher by its source, found "
                "one from Python; leave it out, or use pcd_hub.load_teacher(..., adaptor=...)"
            )
        given.set_bands(None)  # an earlier run may have set them
        teacher = match_teacher(given, student, **sizes)
    else:
        too_large = check_teacher_memory(
            config.teacher.source,
            image_size=teacher_image_size(config),
            batch_size=2 * plan.batch_size,
            device=accelerator.device,
        )
        teacher = load_matched_teacher(
            config.teacher.source,
            student,
            **sizes,
            keep_last_norm=config.teacher.keep_last_norm,
            adaptor=config.teacher.adaptor,
            mean=config.teacher.mean,
            std=config.teacher.std,
        )
        _warn(teacher, too_large)
    if accelerator.is_main_process:
        fault = untrained_warning(teacher)
        if bands == RGB and not fault:
            fault = _wrong_normalisation(teacher, source, config.data.image_size)
        _warn(teacher, fault)
        teacher.faults = (fault,) if fault else teacher.faults
    if config.teacher.fold_batch_norms:
        teacher.fold_batch_norms(teacher.input_size or config.data.image_size)
    last_map = grid_size(student.student, config.data.image_size)
    _check_locations(config, *last_map, "--data.image-size")
    if config.data.early_image_size is not None:
        early_size = config.data.early_image_size
        match_other_size(teacher, student, image_size=config.data.image_size, other_size=early_size)
        last_map = grid_size(student.student, early_size)
        _check_locations(config, *last_map, "--data.early-image-size")
    if places != tuple(range(len(bands))):
        log.info("the teacher's red, green and blue: %s", ", ".join(bands[p] for p in places))
        teacher.set_bands(places)
    return teacher


def _wrong_normalisation(
    teacher: Teacher, source: ImageSource | ImageStream, image_size: ImageSize
) -> str:
    """Return a warning if images of the run show that the teacher's normalisation is wrong."""
    if isinstance(source, ImageStream):
        return ""
    height, width = height_width(teacher.input_size or image_size)
    crop = CentreCrop(height=height, width=width)
    crops = []
    for place in np.linspace(0, len(source) - 1, min(len(source), _NORMALISATION_IMAGES)):
        with contextlib.suppress(BrokenImageError):  # reported where all images are read
            crops.append(source.read(int(place), crop))
    return normalisation_fit_warning(teacher, torch.stack(crops) / 255) if crops else ""


def _warn(teacher: Teacher, warning: str) -> None:
    if warning:
        log.warning("%s: %s", teacher.facts.source, warning)
        teacher.warnings += (warning,)


def _check_locations(config: DistillConfig, height: int, width: int, option: str) -> None:
    """Check that a feature map has the locations that the loss compares; ``option`` sets them."""
    one_location = config.method.targets == "pooled" or height * width < 2
    if config.method.loss == "similarity_kl" and one_location:
        raise ConfigError(
            f"--method.loss similarity_kl compares the locations of an image; expected at least 2, "
            f"found 1 with --method.targets {config.method.targets} on a {height} x {width} "
            f"feature map; use --method.targets pixels and a larger {option}"
        )


def teacher_image_size(config: DistillConfig) -> ImageSize:
    """Return the size of the teacher's images, before it is matched to the student."""
    return input_size(config.data.image_size, config.teacher.image_size)


def resolve_teacher(
    config: DistillConfig, accelerator: Accelerator, *, given: Teacher | None = None
) -> DistillConfig:
    """Return the configuration with the source of the teacher that is used.

    The main process chooses for ``auto``, as the others might choose another.

    Args:
        config: The requested configuration.
        accelerator: The run's Accelerator.
        given: A teacher from Python, if there is one.

    Raises:
        TeacherError: If no teacher of the list is reachable.
    """
    source = config.teacher.source if given is None else given.facts.source
    if source == AUTO:
        source = _choose(config, accelerator)
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, source=source))


def _choose(config: DistillConfig, accelerator: Accelerator) -> str:
    image_size = None if config.derive else teacher_image_size(config)
    kind = accelerator.device.type
    return on_main_process(
        accelerator, lambda: choose_teacher(image_size=image_size, device_type=kind).source
    )
