r"""PCD, pixel-wise contrastive distillation (arXiv:2211.00218): frozen teacher, small student.

    pcd-hub distill                                # config quickstart: offline, CPU, minutes
    accelerate launch -m pcd_hub.train.distill pcd_r18 \
        --teacher.source mocov3_r50:r-50-1000ep.pth.tar --data.source IMAGES

Reading order: this file -> pcd_hub/method/distiller.py -> pcd_hub/method/loss.py.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from pcd_hub.data.loader import Batch
from pcd_hub.data.sources.held_out import split_held_out
from pcd_hub.image_size import ImageSize
from pcd_hub.method.moments import ChannelMoments
from pcd_hub.models.teachers import Teacher
from pcd_hub.train.batches import (
    count_images,
    open_batches,
    open_training_source,
    pair_views,
    plan_epochs,
)
from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.distillation.caching import choose_cache, open_targets
from pcd_hub.train.distillation.device import move_to_device, trial
from pcd_hub.train.distillation.early_checks import check_students_and_folders, check_teacher
from pcd_hub.train.distillation.early_views import (
    at_one_size,
    early_views,
    mean_over_steps,
    with_final_views,
)
from pcd_hub.train.distillation.resident import read_resident
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.held_out.open import open_held_out, read_held_out
from pcd_hub.train.launch import finish, on_main_process, start_accelerator
from pcd_hub.train.monitors.features import feature_monitor
from pcd_hub.train.monitors.logged import logged_warnings
from pcd_hub.train.optimizers import (
    build_optimizer,
    drop_gradients,
    head_only_steps,
    learning_rate,
    optimizer_step,
)
from pcd_hub.train.own_images.arguments import parse_distill
from pcd_hub.train.own_images.records import record_decisions, save_decisions
from pcd_hub.train.own_images.settings import find_settings, set_length
from pcd_hub.train.own_images.surveyed import needs_survey, survey_images
from pcd_hub.train.own_images.timing import measure_step, steps_to_measure
from pcd_hub.train.probe_data.open import check_probe_data, open_probe_scores, read_probe_data
from pcd_hub.train.results.weight import save_weight
from pcd_hub.train.run import TrainingRun
from pcd_hub.train.run_folder.preflight import finishing
from pcd_hub.train.run_folder.resume import first_length
from pcd_hub.train.students.configs import check_students
from pcd_hub.train.students.folders import open_folders, results, run_folder
from pcd_hub.train.students.networks import build_students
from pcd_hub.train.students.table import save_table
from pcd_hub.train.students.turns import Training, take_turns
from pcd_hub.train.teacher.cache.targets import FromTeacher, Targets
from pcd_hub.train.teacher.loading import resolve_teacher

log = logging.getLogger("pcd_hub")


def main(arguments: list[str]) -> list[dict[str, Any]] | None:
    """Parse the command line, distil, save the weight, and return its folders and record."""
    config_name, config, given = parse_distill(arguments)
    return results(run(config, config_name=config_name, given=given))


def run(
    config: DistillConfig,
    *,
    config_name: str,
    given: frozenset[str] = frozenset(),
    teacher: Teacher | None = None,
) -> tuple[Distillation, ...]:
    """Distil and save the weight; return the finished distillation, or one for each student.

    Args:
        config: The requested configuration.
        config_name: Its name, for the run's folder and record.
        given: Fields that the user sets, as ``group.field``; they are never derived.
        teacher: A teacher from Python, instead of ``teacher.source``.
    """
    started = time.monotonic()
    weight_names = check_students(config)
    accelerator = start_accelerator(
        trackers=config.run.trackers,
        speed=config.speed,
        static_graph=config.optim.accumulation_steps == 1,
    )
    with logged_warnings() as warnings:
        students = prepare(
            accelerator, config, config_name, given=given, started=started, teacher=teacher
        )
        if accelerator.is_main_process:
            warnings.keep_in(run_folder(students) / "warnings.json")
        train(students)
        with finishing(run_folder(students)):
            finish(accelerator)
            if accelerator.is_main_process:
                for d, weight_name in zip(students, weight_names, strict=True):
                    with d.own_state.in_use():
                        save_weight(d, weight_name, warnings=warnings.messages)
                        d.folder.end_trackers()
                save_table(students, weight_names)
    return students


def train(students: Sequence[Distillation]) -> None:
    """Train one student, or several by one step of each in turn."""
    take_turns(students, [train_student(d) for d in students])


def train_student(d: Distillation) -> Training:
    """Train the student and its head against the frozen teacher; pause after every step."""
    accelerator, config, plan, end = d.accelerator, d.config, d.plan, d.end
    early = early_views(config.data, total_steps=plan.total_steps)
    wrapped, optimizer = wrap(d)
    verdict = d.begin_verdict()
    run = TrainingRun(
        accelerator=accelerator,
        folder=d.folder,
        plan=plan,
        open_batches=functools.partial(
            d.shared.batches.open,
            functools.partial(open_batches, d.images, config.data, accelerator.device, early=early),
        ),
        network=d.distiller,
        optimizer=optimizer,
        state={
            "distiller": d.distiller,
            "optimizer": optimizer,
            "early_verdict": verdict,
            **d.teacher_statistics,
            **d.scored,
        },
        learning_rate=lambda step: (
            end.factor(step)
            * learning_rate(end.scheduled_step(step), config.optim, plan.total_steps)
        ),
        num_steps=lambda: end.total_steps,
        lr_option="--optim.lr-per-256",
        num_images=count_images(d.source, d.held_out_source),
        stop_request=d.shared.stop,
        label=config.student.arch,
    )
    monitor = feature_monitor(d)
    log.info(
        "distil %s into %s: %d steps, results in %s%s",
        *(config.teacher.source, config.student.arch, plan.total_steps, d.folder.path),
        f"; views of {early}, which are faster" if early else "",
    )
    wrapped.train()
    run.start()
    if accelerator.is_main_process:
        save_decisions(d)
    yield run  # resumed, perhaps further on than the other students
    num_head_only = head_only_steps(
        config.optim, first_length(d.folder.changes, plan.total_steps)
    )  # a run that is made longer does not train its head alone again
    with contextlib.closing(run.steps()) as steps:
        for step, batches in steps:
            if step == 0:
                score(d, 0)
            loss, norm = training_step(
                d, wrapped, optimizer, batches, head_only=step < num_head_only
            )
            measured = run.is_measured(step) or verdict.is_due(step)
            measured = measured and accelerator.is_main_process
            metrics = monitor.measure(norm, batches[-1]) if measured else None
            score(d, step + 1)
            if metrics is not None:
                metrics = verdict.add(step, metrics, d.held_out)
            run.end_step(loss, norm, metrics=metrics)
            yield run


def score(d: Distillation, done: int) -> None:
    """Score the student on the held-out and the labelled images, if it is due."""
    for scores in d.scored.values():
        scores.measure(done)


def wrap(d: Distillation) -> tuple[nn.Module, Any]:
    """Build the optimizer, and wrap it and the networks with gradients for all processes."""
    heads = (d.distiller.head, d.distiller.finer_heads)
    optimizer = build_optimizer(d.distiller, d.config.optim, d.config.speed, heads=heads)
    return d.accelerator.prepare(d.distiller, optimizer)


def training_step(
    d: Distillation,
    distiller: nn.Module,
    optimizer: Any,
    batches: list[Batch],
    *,
    head_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Update student and queue by one global batch; return this process's loss and gradient norm.

    Args:
        d: Teacher, queue and configuration.
        distiller: Student, head and loss, wrapped by the Accelerator.
        optimizer: Optimizer, wrapped by the Accelerator.
        batches: This process's batches, one per accumulation step.
        head_only: Leave the student's weights unchanged and train its head.
    """
    accelerator = d.accelerator
    losses, keys = [], []
    for number, batch in enumerate(batches, start=1):
        images = d.normalise.images(batch)  # all first views, then all second views
        is_last = number == len(batches)
        with contextlib.nullcontext() if is_last else accelerator.no_sync(distiller):
            with accelerator.autocast():
                with record_function("teacher"):
                    target = d.targets(d.teacher, batch, images)
                if d.moments is not None:
                    own = ChannelMoments.of(target)[None]
                    d.moments.add(accelerator.gather(own))  # pyright: ignore[reportArgumentType]
                    target = d.moments.standardise(target)
                keys.append(target[: len(batch.views)].float().mean((2, 3)))
                target = pair_views(target, d.config.method.views)
                negatives = () if d.queue is None else (d.queue.keys,)
                loss = distiller(d.normalise(images), target, *negatives) / len(batches)
            losses.append(loss)
            with record_function("backward"):  # outside autocast, which rounds some gradients
                accelerator.backward(loss)
    if head_only:
        drop_gradients(d.distiller.student)
    clip_grad_norm = d.config.optim.clip_grad_norm
    norm = optimizer_step(distiller, optimizer, accelerator, clip_grad_norm=clip_grad_norm)
    if d.queue is not None:
        for key in keys:
            d.queue.push(accelerator.gather(key))  # pyright: ignore[reportArgumentType]
    return torch.stack(losses).detach().sum(), norm


def prepare(
    accelerator: Accelerator,
    config: DistillConfig,
    config_name: str,
    *,
    given: frozenset[str] = frozenset(),
    teacher: Teacher | None = None,
    started: float | None = None,
) -> tuple[Distillation, ...]:
    """Build every student; invalid settings raise before the output folder is created.

    Args:
        accelerator: The run's Accelerator.
        config: The requested configuration.
        config_name: Its name.
        given: Fields that the user sets, as ``group.field``.
        teacher: A teacher from Python, instead of ``teacher.source``.
        started: Time of the run's start, by ``time.monotonic``; now if not given.
    """
    started = time.monotonic() if started is None else started
    check_students_and_folders(accelerator, config, default_name=config_name)
    labelled = check_probe_data(accelerator, config)
    config = resolve_teacher(config, accelerator, given=teacher)
    if needs_survey(config) and teacher is None:
        check_teacher(accelerator, config)
    everything = open_training_source(config.data, accelerator)
    survey = survey_images(everything, config, given, accelerator)
    source, held_out = split_held_out(everything, share=config.data.held_out)
    settings = find_settings(
        config,
        default_name=config_name,
        given=given,
        num_images=count_images(source),
        short_side=survey.short_side if survey else 0,
        accelerator=accelerator,
        teacher=teacher,
    )
    held_out_images = read_held_out(accelerator, settings.config, held_out)
    students = build_students(accelerator, settings.config, config_name, source, teacher)
    labelled = read_probe_data(students, labelled, everything)

    def measure(*targets: Targets) -> float:
        read_resident(students[0])
        final = map(with_final_views, students) if settings.steps_done else students
        return seconds_per_step(tuple(final), *targets)

    decisions, seconds = choose_cache(students, settings, measure, started=started)
    if seconds is not None and settings.needs_measurement:
        used, unmeasured = time.monotonic() - started, settings
        settings = on_main_process(
            accelerator, lambda: set_length(unmeasured, seconds, seconds_used=used)
        )
        for d in students:
            d.config = with_fields(d.config, settings.length)
            d.plan = plan_epochs(source, d.config.optim, d.config.run, accelerator)
    open_folders(students, settings.config, default_name=config_name)
    for d in students:
        d.survey, d.decisions = survey, (*settings.decisions, *decisions)
    if accelerator.is_main_process:
        record_decisions(students)
    read_resident(students[0])
    for d in students:
        d.targets = open_targets(d)
        move_to_device(d)
        d.held_out, d.held_out_source = open_held_out(d, held_out_images), held_out
        d.probe_data = open_probe_scores(d, labelled)
    return students


def seconds_per_step(students: Sequence[Distillation], targets: Targets | None = None) -> float:
    """Measure the mean step of all students on copies of them; call it on every process.

    Args:
        students: The students.
        targets: Source of the teacher's feature maps; the teacher itself if not given.
    """
    log.info("measuring the duration of a step%s", " without the teacher" if targets else "")
    d, data = students[0], students[0].config.data
    num_workers = data.num_workers or 0
    steps = max(d.plan.total_steps, steps_to_measure(num_workers))  # a run may have fewer
    plan = dataclasses.replace(d.plan, total_steps=steps)
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(trial(student)) for student in students]
        for copied in copies:
            copied.targets = targets or FromTeacher()
        wrapped = [(copied, *wrap(copied)) for copied in copies]
        for _, network, _ in wrapped:
            network.train()

        def step(batches: list[Batch]) -> None:
            for copied, network, optimizer in wrapped:
                training_step(copied, network, optimizer, batches)
            d.shared.clear()

        def measure(size: ImageSize) -> float:
            views = at_one_size(data, size)
            return measure_step(
                step,
                open_batches(d.images, views, d.accelerator.device, plan, {}),
                accumulation_steps=plan.accumulation_steps,
                num_workers=num_workers,
                accelerator=d.accelerator,
            )

        return mean_over_steps(data, measure)


if __name__ == "__main__":
    run_main(main)
