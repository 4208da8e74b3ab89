"""Settings of a run: derived from its situation, or those with which it was started."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pcd_hub.data.multiband.names import RGB
from pcd_hub.data.workers import num_cores
from pcd_hub.errors import ConfigError
from pcd_hub.models.teacher_sources.module import only_size
from pcd_hub.models.teachers import Teacher
from pcd_hub.report.run_report import Setting
from pcd_hub.train.configs.distill import DERIVED, DistillConfig
from pcd_hub.train.configs.fields import options
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.launch import on_main_process
from pcd_hub.train.own_images.architectures import (
    common_step,
    has_finer_map,
    most_bytes_per_pixel,
    teacher_has_head,
    teacher_patch,
)
from pcd_hub.train.own_images.records import read_decisions
from pcd_hub.train.own_images.rule import (
    FOLLOW_FROM_LENGTH,
    MIN_STEPS,
    derive,
    least_hours,
    steps_in_hours,
)
from pcd_hub.train.own_images.situation import LENGTH, Situation
from pcd_hub.train.own_images.started import (
    MAX_STEPS,
    started_settings,
    steps_done,
    student_folders,
)
from pcd_hub.train.run_folder.folder import existing_run
from pcd_hub.weights import shipped

log = logging.getLogger("pcd_hub")

ANY_SIZE = 2**14
"""Larger than any image size of a configuration."""

_DECIDED = frozenset({"teacher.source", "data.resident", "data.resident_side"})
"""Fields with a value "auto" that is decided when a run starts."""

UNMEASURED_STEPS = 1_000_000
"""Length of a run before a measured step sets it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration, and the decisions that led to it."""

    config: DistillConfig
    situation: Situation
    decisions: tuple[Setting, ...] = ()
    derives: bool = False
    """Whether all settings are derived, not only the length."""
    needs_measurement: bool = False
    """Whether the duration of a step sets the length."""
    steps_done: int = 0
    """Steps of a run that is made longer."""
    length: Mapping[str, Any] = field(default_factory=dict)
    """Values that follow from the measured duration of a step, by option."""


def find_settings(
    config: DistillConfig,
    *,
    default_name: str,
    given: frozenset[str],
    num_images: int | None,
    short_side: int,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
) -> Settings:
    """Derive the settings of a new run, or take those of the run that is resumed.

    The main process decides; call it on every process.

    Args:
        config: The requested configuration.
        default_name: Name of the run's folder below ``runs``, if none is configured.
        given: Fields that the user sets, as ``group.field``; they are not derived.
        num_images: Images to train on; None for a stream.
        short_side: Median of the images' shorter sides, in pixels; 0 if it is unknown.
        accelerator: The run's Accelerator.
        teacher: A teacher from Python, instead of ``teacher.source``.

    Raises:
        ConfigError: If there is no run to resume.
    """
    return on_main_process(
        accelerator,
        lambda: _find_settings(
            config,
            existing_run(config, default_name) if config.run.resume else None,
            lambda config: find_situation(
                config,
                given,
                num_images=num_images,
                short_side=short_side,
                accelerator=accelerator,
                teacher=teacher,
            ),
            given=given,
        ),
    )


def _find_settings(
    config: DistillConfig,
    folder: Path | None,
    situation_of: Callable[[DistillConfig], Situation],
    *,
    given: frozenset[str],
) -> Settings:
    config = resolve_start(config)
    decisions: tuple[Setting, ...] = ()
    done = 0
    if folder is not None:
        done = steps_done(folder)
        if config.derive or config.run.hours is not None:
            config = as_started(config, given, started_settings(config, folder))
        values = {option.key: option.value for option in options(config)}
        decisions = tuple(
            one
            for one in read_decisions(student_folders(folder)[0])
            if values.get(one.option) == one.value
        )
    situation = situation_of(config)
    derives = config.derive
    if derives:
        decisions = derive(situation)
        config = with_fields(config, {one.option: one.value for one in decisions})
    measures = situation.hours is not None or (derives and not situation.has_length)
    lengths = {"run.hours": None, "run.add_hours": None}
    lengths |= {MAX_STEPS: UNMEASURED_STEPS} if measures else {}
    return Settings(
        config=with_fields(config, {"derive": False, **lengths}),
        situation=situation,
        decisions=decisions,
        derives=derives,
        needs_measurement=measures,
        steps_done=done,
    )


def resolve_start(config: DistillConfig) -> DistillConfig:
    """Return the configuration with ``shipped`` or ``none`` instead of ``student.weights`` auto."""
    if config.student.weights != "auto":
        return config
    start = "shipped" if has_shipped_start(config) else "none"
    if start == "none":
        log.info(
            "pcd_hub ships no weight of %s for such images: random weights, which need more steps",
            config.student.arch,
        )
    return with_fields(config, {"student.weights": start})


def has_shipped_start(config: DistillConfig) -> bool:
    """Return whether every student has a shipped weight, which is for RGB images."""
    return config.data.bands == RGB and all(
        map(shipped.of_architecture, config.student.architectures)
    )


def as_started(
    config: DistillConfig, given: frozenset[str], started: Mapping[str, Any]
) -> DistillConfig:
    """Return the configuration with the derived values and the length of the run it resumes.

    Args:
        config: The requested configuration, which asks to derive values or a length.
        given: Fields that the user sets.
        started: Values of the run, by field.
    """
    names = {MAX_STEPS}
    if config.derive:
        names |= (DERIVED | _DECIDED) - given
    kept = {name: started[name] for name in names if name in started}
    if config.run.add_hours is not None or any(name in given for name in LENGTH):
        del kept[MAX_STEPS]
    if config.run.hours is not None:
        log.info(
            "the run keeps its length of %s steps; --resume RUN --hours H makes it longer",
            kept.get(MAX_STEPS),
        )
    return with_fields(config, {**kept, "derive": False, "run.hours": None})


def set_length(settings: Settings, seconds_per_step: float, *, seconds_used: float) -> Settings:
    """Set the number of steps, and what depends on it, by the measured duration of a step.

    Args:
        settings: Settings that need the measurement.
        seconds_per_step: Duration of a step.
        seconds_used: Seconds since the start of the run.

    Raises:
        ConfigError: If the hours are too short for a few steps.
    """
    situation = replace(
        settings.situation, seconds_per_step=seconds_per_step, seconds_used=seconds_used
    )
    config, done = settings.config, settings.steps_done
    if settings.derives:
        decisions = derive(situation)
        decided = [one for one in decisions if one.option in FOLLOW_FROM_LENGTH]
    else:
        steps = steps_in_hours(situation, config.optim.global_batch_size)
        if done:
            steps = replace(steps, value=done + steps.value, reason=f"{done} + {steps.reason}")
        kept = (one for one in settings.decisions if one.option != MAX_STEPS)
        decisions, decided = (*kept, steps), [steps]
    length = {one.option: one.value for one in decided}
    if length[MAX_STEPS] < done + MIN_STEPS:
        option = "--run.add-hours" if config.run.resume else "--run.hours"
        raise ConfigError(_too_short(situation, option))
    return replace(
        settings,
        config=with_fields(config, length),
        situation=situation,
        decisions=decisions,
        length=length,
    )


def _too_short(s: Situation, option: str) -> str:
    return (
        f"{option} {s.hours_or_default:g}: expected at least {least_hours(s):g}; a step takes "
        f"{s.seconds_per_step:.3g} s, the start took {s.seconds_used:.0f} s, and a run has at "
        f"least {MIN_STEPS} steps"
    )


def find_situation(
    config: DistillConfig,
    given: frozenset[str],
    *,
    num_images: int | None,
    short_side: int,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
) -> Situation:
    """Return what the derived settings depend on; see :func:`find_settings`."""
    device = accelerator.device
    precision = str(accelerator.mixed_precision)
    hours = config.run.hours or config.run.add_hours
    values = {option.key: option.value for option in options(config) if option.key in given}
    return Situation(
        num_images=num_images,
        short_side=short_side or ANY_SIZE,
        device=device.type,
        num_devices=accelerator.num_processes,
        cores=num_cores(),
        precision="fp32" if precision == "no" else precision,
        student_patch=common_step(config, kind=device.type, short_side=short_side, given=given),
        student_has_finer_map=config.derive
        and all(map(has_finer_map, config.student.architectures)),
        memory=_memory(device),
        bytes_per_pixel=most_bytes_per_pixel(config)
        if config.derive and device.type == "cuda"
        else None,
        has_shipped_start=has_shipped_start(config),
        teacher=config.teacher.source,
        teacher_has_head=teacher_has_head(config.teacher.source, teacher),
        teacher_patch=teacher_patch(config, teacher),
        teacher_size=only_size(teacher.grid.model) if teacher else None,
        loss=config.method.loss,
        accumulation_steps=config.optim.accumulation_steps,
        hours=hours,
        given={k: v for k, v in values.items() if not (k in LENGTH and (hours or v is None))},
    )


def _memory(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory)
