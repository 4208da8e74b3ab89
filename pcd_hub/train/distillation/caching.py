"""Decide whether a run caches the teacher's feature maps, and open the cache."""

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pcd_hub.data.sources.open import ImageSource
from pcd_hub.errors import ConfigError
from pcd_hub.image_size import ImageSize, height_width
from pcd_hub.report.run_report import Setting
from pcd_hub.train.batches import steps_per_epoch, view_seed
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.distillation.early_views import at_one_size, view_sizes
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.launch import on_main_process
from pcd_hub.train.own_images.rule import steps_in_hours, training_seconds
from pcd_hub.train.own_images.settings import Settings
from pcd_hub.train.own_images.started import started_settings
from pcd_hub.train.run_folder.folder import existing_run
from pcd_hub.train.teacher.cache.estimate import (
    MIN_EPOCHS,
    CacheSize,
    Choice,
    StepTimes,
    as_gb,
    average_step,
    choose,
    useful_view_epochs,
    write_speed,
)
from pcd_hub.train.teacher.cache.folders import (
    complete_bytes,
    free_bytes,
    place_of,
)
from pcd_hub.train.teacher.cache.key import Facts, cache_facts, cache_name, teacher_output
from pcd_hub.train.teacher.cache.preparing import prepare_folder
from pcd_hub.train.teacher.cache.records import RecordFormat, Values
from pcd_hub.train.teacher.cache.store import RecordStore
from pcd_hub.train.teacher.cache.targets import BySize, FromCache, FromTeacher, Repeated, Targets

log = logging.getLogger("pcd_hub")

OFF, AUTO = "off", "auto"
_CACHE, _VIEWS = "teacher.cache", "data.view_epochs"


def choose_cache(
    students: Sequence[Distillation],
    settings: Settings,
    measure: Callable[..., float],
    *,
    started: float,
) -> tuple[tuple[Setting, ...], float | None]:
    """Set ``teacher.cache`` and ``data.view_epochs`` of all students; call it on every process.

    The main process decides. A step is measured if the length of the run or the cache depends on
    it.

    Args:
        students: The students of the run; their configurations are changed.
        settings: The run's settings, which may not have a length yet.
        measure: Function that measures a step, with the teacher or other targets.
        started: Time of the run's start, by ``time.monotonic``.

    Returns:
        The decisions, and the mean seconds of a step in a run whose length is given in hours.

    Raises:
        ConfigError: If a cache is requested for a stream, or there is no room for it.
    """
    d, resumes = students[0], students[0].config.run.resume
    decides = d.config.teacher.cache == AUTO and not resumes and _may_pay(d, settings, None)
    times = None
    if settings.needs_measurement or decides:
        seconds = measure()
        cached = measure(Repeated()) if _may_pay(d, settings, seconds) else seconds
        times = StepTimes(teacher=seconds, cached=cached)
    decisions: tuple[Setting, ...] = ()
    if resumes:
        values = on_main_process(d.accelerator, lambda: _started(d))
    else:
        values, decisions = _decide(students, settings, times)
    for student in students:
        student.config = with_fields(student.config, values)
    if times is None:
        return decisions, None
    return decisions, _mean_seconds(students, settings, times, time.monotonic() - started)


def _may_pay(d: Distillation, settings: Settings, seconds_per_step: float | None) -> bool:
    """Return whether the images are seen often enough for a cache, as far as this is known."""
    if d.config.teacher.cache == OFF or not isinstance(d.source, ImageSource):
        return False
    if seconds_per_step is None and settings.needs_measurement:
        return True
    return _epochs(d, settings, seconds_per_step) >= MIN_EPOCHS


def _decide(
    students: Sequence[Distillation], settings: Settings, times: StepTimes | None
) -> tuple[dict[str, Any], tuple[Setting, ...]]:
    """Return the values for a new run, and the decisions that led to them."""
    config = students[0].config
    if config.teacher.cache == OFF:
        return {}, ()
    choice = on_main_process(students[0].accelerator, lambda: _choose(students, settings, times))
    value = config.teacher.cache if choice.view_epochs else OFF
    view_epochs = choice.view_epochs or config.data.view_epochs
    decided = [Setting(_CACHE, value, choice.reason)]
    if view_epochs != config.data.view_epochs:
        decided.append(Setting(_VIEWS, view_epochs, "views for which the cache has the targets"))
    return {_CACHE: value, _VIEWS: view_epochs}, tuple(decided)


def _mean_seconds(
    students: Sequence[Distillation], settings: Settings, times: StepTimes, seconds_used: float
) -> float:
    """Return the mean seconds of a step; in the first epochs the cache is filled."""
    d = students[0]
    if d.config.teacher.cache == OFF or not settings.needs_measurement:
        return times.teacher
    size = _size(students, place_of(d.config.teacher.cache))
    view_epochs = d.config.data.view_epochs
    missing = size.missing_bytes(view_epochs) / size.num_bytes(view_epochs)
    epochs = missing * view_epochs * len(view_sizes(d.config.data))
    return average_step(
        times,
        filling_steps=epochs * steps_per_epoch(d.source, d.config.optim),
        seconds=training_seconds(replace(settings.situation, seconds_used=seconds_used)),
    )


def open_targets(d: Distillation) -> Targets:
    """Return the source of the teacher's feature maps; call it on every process.

    Raises:
        ConfigError: If the cache belongs to another teacher, or cannot be written.
    """
    config, source = d.config, d.source
    if config.teacher.cache == OFF or not isinstance(source, ImageSource):
        return FromTeacher()
    sizes = view_sizes(config.data)
    return BySize({height_width(size): _open_cache(d, source, size) for size in sizes})


def _open_cache(d: Distillation, source: ImageSource, size: ImageSize) -> FromCache:
    """Open the cache of the views of one size."""
    config = d.config
    record_format = _record_format(d, size)
    output = teacher_output(d.teacher, at_one_size(config.data, size))
    folder = prepare_folder(place_of(config.teacher.cache), _facts(d, size), output)
    try:
        store = RecordStore(
            folder,
            num_records=len(source) * config.data.view_epochs,
            record_bytes=record_format.num_bytes,
        )
    except OSError as error:
        raise ConfigError(
            f"--teacher.cache: cannot open {folder} ({error.strerror or error}); name another "
            "folder, or use --teacher.cache off"
        ) from error
    log.info("the teacher's cache %s has %d of %d records", folder, store.num_complete, len(store))
    return FromCache(
        store,
        record_format,
        view_epochs=config.data.view_epochs,
        name_of=source.name if isinstance(source, ImageSource) else str,
        whole_batches=bool(config.speed.compile),
    )


def _started(d: Distillation) -> dict[str, Any]:
    """Return the settings of the run that is resumed; a cache that it has can be switched off."""
    found = started_settings(d.config, existing_run(d.config, d.config_name))
    view_epochs = found.get(_VIEWS, 0)
    cached = view_epochs and found.get(_CACHE, OFF) != OFF
    setting = d.config.teacher.cache
    if setting == AUTO and not cached:
        setting = OFF
    if setting != OFF and not (view_epochs or d.config.data.view_epochs):
        raise ConfigError(
            f"--teacher.cache {setting}: the run that is resumed has new views in every epoch, "
            "expected views that repeat; resume it with --teacher.cache off"
        )
    return {_CACHE: setting, _VIEWS: d.config.data.view_epochs or view_epochs}


def _choose(
    students: Sequence[Distillation], settings: Settings, times: StepTimes | None
) -> Choice:
    d = students[0]
    setting = d.config.teacher.cache
    if not isinstance(d.source, ImageSource):
        if setting == AUTO:
            return Choice(view_epochs=0, reason="a stream has no image twice")
        raise ConfigError(
            f"--teacher.cache {setting}: --data.source is a stream, expected images with an order; "
            "use --teacher.cache off"
        )
    place = place_of(setting)
    size = _size(students, place)
    epochs = _epochs(d, settings, times.teacher if times else None)
    if setting == AUTO:
        return _choose_freely(d, size, place, times, epochs)
    view_epochs = d.config.data.view_epochs
    if not view_epochs:
        view_epochs = max(1, min(useful_view_epochs(epochs), size.most_view_epochs))
    if too_large := size.too_large(view_epochs):
        raise ConfigError(
            f"--teacher.cache {setting}: it {too_large}; name another folder, lower "
            "--data.view-epochs, or use --teacher.cache off"
        )
    size = _size([_with_view_epochs(each, view_epochs) for each in students], place)
    if size.missing_bytes(view_epochs):
        with contextlib.suppress(OSError):  # opening the cache reports it
            _announce(place, size, view_epochs, write_speed(place))
    return Choice(view_epochs=view_epochs, reason=f"as requested, {_gb(size, view_epochs)}")


def _announce(place: Path, size: CacheSize, view_epochs: int, speed: float) -> None:
    """Log the size of a cache, and how long this disk takes for what is missing."""
    seconds = size.missing_bytes(view_epochs) / speed
    log.info(
        "the teacher's cache in %s: %s; its disk takes %.0f MB/s, so %.0f s for what is missing",
        *(place, size.describe(view_epochs), speed / 1e6, seconds),
    )


def _with_view_epochs(d: Distillation, view_epochs: int) -> Distillation:
    changed = copy.copy(d)
    changed.config = with_fields(d.config, {_VIEWS: view_epochs})
    return changed


def _choose_freely(
    d: Distillation, size: CacheSize, place: Path, times: StepTimes | None, epochs: float
) -> Choice:
    """Decide by the durations, the room and the speed of the disk."""
    if times is None or epochs < MIN_EPOCHS:
        return Choice(view_epochs=0, reason=f"{epochs:.1f} passes over the images are too few")
    try:
        speed = write_speed(place)
    except OSError as error:
        reason = f"cannot write to {place} ({error.strerror or error})"
        return Choice(view_epochs=0, reason=reason)
    per_step = size.record_bytes * d.plan.batch_size * d.plan.accumulation_steps / speed
    choice = choose(
        size,
        times,
        epochs=epochs,
        writing_seconds=per_step,
        requested=d.config.data.view_epochs,
    )
    if choice.view_epochs:
        _announce(place, size, choice.view_epochs, speed)
    return choice


def _epochs(d: Distillation, settings: Settings, seconds_per_step: float | None) -> float:
    """Return the passes over the images for each size of the views, as far as they are known."""
    steps = d.plan.total_steps
    if settings.needs_measurement:
        if seconds_per_step is None:
            return 0.0
        situation = replace(settings.situation, seconds_per_step=seconds_per_step)
        steps = steps_in_hours(situation, d.config.optim.global_batch_size).value
    epochs = steps / max(1, steps_per_epoch(d.source, d.config.optim))
    return epochs / len(view_sizes(d.config.data))


def _size(students: Sequence[Distillation], place: Path) -> CacheSize:
    """Return the size of all caches of a run; students with the same feature maps share one."""
    source, config = students[0].source, students[0].config
    assert isinstance(source, ImageSource)
    caches = {
        cache_name(_facts(d, size)): _record_format(d, size).num_bytes
        for d in students
        for size in view_sizes(config.data)
    }
    existing = 0
    if config.data.view_epochs:
        existing = sum(
            complete_bytes(place / name, record_bytes=num_bytes)
            for name, num_bytes in caches.items()
        )
    return CacheSize(
        num_images=len(source),
        record_bytes=sum(caches.values()),
        limit_bytes=config.teacher.cache_gb * 1e9,
        free_bytes=free_bytes(place),
        existing_bytes=existing,
    )


def _gb(size: CacheSize, view_epochs: int) -> str:
    return as_gb(size.num_bytes(view_epochs))


def _record_format(d: Distillation, size: ImageSize) -> RecordFormat:
    height, width = d.teacher.grid_size(size)
    return RecordFormat(
        channels=d.teacher.num_channels,
        height=height,
        width=width,
        bands=len(d.config.data.bands),
        values=_values(d),
    )


def _values(d: Distillation) -> Values:
    """Return the format of the values: a loss that standardises the channels sees small ones."""
    return "float16" if d.config.method.loss == "cosine_smooth_l1" else "int8"


def _facts(d: Distillation, size: ImageSize) -> Facts:
    assert isinstance(d.source, ImageSource)
    config = d.config
    return cache_facts(
        d.teacher.for_size(size),
        at_one_size(config.data, size),
        images=d.source.fingerprint(),
        num_images=len(d.source),
        values=_values(d),
        view_seed=view_seed(config.data, config.run.seed),
        precision=config.speed.precision,
        resident_side=config.data.resident_side if config.data.resident == "on" else None,
    )
