"""Parts of a distillation: teacher, student with head and loss, negatives, compilation."""

import contextlib
import copy
import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.multiband.names import RGB, teacher_places
from pcd_hub.data.multiband.statistics import band_statistics
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.data.survey.result import Survey
from pcd_hub.image_size import simplest
from pcd_hub.method.distiller import Distiller, PixelLoss
from pcd_hub.method.heads import STUDENT_HEADS, HeadLayout, student_head
from pcd_hub.method.loss import cosine_smooth_l1, pixel_info_nce, similarity_kl
from pcd_hub.method.moments import ChannelMoments
from pcd_hub.method.queue import KeyQueue
from pcd_hub.models.entries import check_architecture
from pcd_hub.models.grid import PixelGrid
from pcd_hub.models.teachers import Teacher
from pcd_hub.train.batches import Normalise, count_images, num_workers
from pcd_hub.train.configs.distill import DistillConfig, PixelMethodConfig, resolve_method
from pcd_hub.train.configs.pretraining import resolve_augmentation
from pcd_hub.train.configs.run import resolve_run
from pcd_hub.train.held_out.held_out import HeldOut
from pcd_hub.train.launch import on_main_process
from pcd_hub.train.networks import build_backbone, memory_format, with_sync_batch_norm
from pcd_hub.train.own_images.rule import Decision
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.speed import (
    Compilable,
    compile_networks,
    compiles_training,
    has_sync_batch_norm,
    resolve_speed,
    run_once,
)
from pcd_hub.train.student.weights import StartWeight, load_start
from pcd_hub.weights.input_bands import InputBands

log = logging.getLogger("pcd_hub")


@dataclasses.dataclass(kw_only=True)
class Distillation:
    """A distillation that is ready to start, or finished."""

    config: DistillConfig
    config_name: str
    accelerator: Accelerator
    folder: RunFolder = dataclasses.field(init=False)
    """Set when everything else is built."""
    source: ImageSource | ImageStream
    plan: BatchPlan
    teacher: Teacher
    distiller: Distiller
    """Student, head and loss, not wrapped by the Accelerator."""
    student: nn.Module
    """The timm model inside ``distiller``."""
    start: nn.Module
    """A copy of the student before training."""
    start_weight: StartWeight | None
    """The weights that the student starts from; None if they are random."""
    untrained: tuple[str, ...]
    """Parameters of the student that do not affect its feature map."""
    queue: KeyQueue | None
    moments: ChannelMoments | None
    bands: InputBands
    normalise: Normalise
    held_out: HeldOut | None = None
    """Scores on the held-out images; None without any."""
    decisions: tuple[Decision, ...] = ()
    """Settings that were derived, with the reason of each."""
    survey: Survey | None = None
    """Survey of the images; None if they were not surveyed, and in a resumed run on all processes
    but the main one."""
    export: Path | None = None
    """Folder of the finished weight; None before it is written, and on other processes."""

    @property
    def start_label(self) -> str:
        """Name of ``start`` in tables: "random start", or "start (resnet18.a1_in1k)"."""
        return f"start ({self.start_weight.name})" if self.start_weight else "random start"

    @property
    def exported_step(self) -> int:
        """Steps of training of the finished student."""
        if self.held_out is None:
            return self.plan.total_steps
        exported = self.held_out.exported
        return exported.step if exported else self.held_out.end.total_steps

    @property
    def teacher_statistics(self) -> dict[str, nn.Module]:
        """Key queue or channel moments by name: part of the checkpoints, not of the network."""
        parts = {"queue": self.queue, "moments": self.moments}
        return {name: part for name, part in parts.items() if part is not None}


def resolve(
    config: DistillConfig,
    *,
    accelerator: Accelerator,
    plan: BatchPlan,
    source: ImageSource | ImageStream,
    teacher: Teacher,
) -> DistillConfig:
    """Return the configuration with all defaults resolved; it reproduces the same run.

    Args:
        config: The requested configuration, with None, "auto" or "match" for defaults.
        accelerator: The run's Accelerator, for device and precision.
        plan: The run's steps.
        source: The images, whose number limits the queue.
        teacher: The teacher, matched to the student.
    """
    workers = num_workers(config.data.num_workers, accelerator.device)
    config = resolve_run(config, total_steps=plan.total_steps, num_workers=workers)
    image_size = simplest(config.data.image_size)
    return dataclasses.replace(
        config,
        data=resolve_augmentation(dataclasses.replace(config.data, image_size=image_size)),
        teacher=dataclasses.replace(
            config.teacher,
            image_size=teacher.input_size or image_size,
            mean=teacher.facts.mean,
            std=teacher.facts.std,
        ),
        method=resolve_method(config.method, num_images=count_images(source)),
        speed=resolve_speed(config.speed, accelerator, steps=plan.total_steps),
    )


def build_student(config: DistillConfig) -> tuple[PixelGrid, StartWeight | None]:
    """Build the student with the weights that it starts from; None if they are random."""
    arch, image_size = config.student.arch, config.data.image_size
    in_chans = len(config.data.bands)
    student = build_backbone(arch, image_size=image_size, in_chans=in_chans)
    weights = config.student.weights
    start_weight = load_start(
        student.model,
        weights,
        architecture=arch,
        image_size=image_size,
        in_chans=in_chans,
        rgb=config.data.bands == RGB,
    )
    return student, start_weight


def with_start(config: DistillConfig, start_weight: StartWeight | None) -> DistillConfig:
    """Return the configuration with the name of the weights that ``pretrained`` stands for."""
    weights = start_weight.source if start_weight else "none"
    return dataclasses.replace(config, student=dataclasses.replace(config.student, weights=weights))


def describe_inputs(
    source: ImageSource | ImageStream, teacher: Teacher, start_weight: StartWeight | None
) -> dict[str, str]:
    """Return the fingerprints of a run's inputs by name; a resumed run needs the same."""
    inputs = {"data": source.fingerprint(), "teacher": f"sha256 {teacher.facts.sha256}"}
    return inputs | ({"start": f"sha256 {start_weight.sha256}"} if start_weight else {})


def move_to_device(d: Distillation) -> None:
    """Move the networks to the device, with SyncBatchNorm and compiled as configured."""
    accelerator, config = d.accelerator, d.config
    if config.optim.sync_batch_norm:
        d.distiller = cast("Distiller", with_sync_batch_norm(d.distiller, accelerator))
    layout = memory_format(channels_last=config.speed.channels_last)
    for network in (d.distiller, d.teacher):
        network.to(accelerator.device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    for part in d.teacher_statistics.values():
        part.to(accelerator.device)
    if config.speed.compile:
        compile_distillation(d)


@contextlib.contextmanager
def trial(d: Distillation) -> Iterator[Distillation]:
    """Yield a copy whose training leaves ``d`` and the random states unchanged.

    Training on it must not outlive the block. ``d`` is not on its device yet.
    """
    accelerator = d.accelerator
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    with torch.random.fork_rng(devices):
        copied = dataclasses.replace(
            d,
            distiller=copy.deepcopy(d.distiller),
            queue=copy.deepcopy(d.queue),
            moments=copy.deepcopy(d.moments),
        )
        move_to_device(copied)
        yield copied
    accelerator.free_memory()
    if accelerator.scaler is not None and scaler is not None:
        accelerator.scaler.load_state_dict(scaler)


def compile_distillation(d: Distillation) -> None:
    """Compile the teacher, and on GPUs the student and head, which gain nothing on CPUs."""
    images = d.normalise.example(2 * d.plan.batch_size, d.config.data.image_size)
    parts: dict[str, Compilable] = {"teacher": d.teacher}
    if compiles_training(images.device) and not has_sync_batch_norm("student", d.distiller):
        parts |= {"student": d.distiller.student, "head": d.distiller.head}

    def one_pass() -> None:
        with d.accelerator.autocast():
            target = d.teacher(images)
        if "student" in parts:
            negatives = () if d.queue is None else (d.queue.keys,)
            run_once(d.distiller, images, target, *negatives, accelerator=d.accelerator)

    compile_networks(parts, one_pass, d.accelerator)


def resolve_bands(
    accelerator: Accelerator, config: DistillConfig, source: ImageSource | ImageStream
) -> tuple[DistillConfig, InputBands]:
    """Return the configuration with the normalisation of the bands, and the bands.

    The statistics of bands that pretrained networks do not know are measured.
    """
    data = config.data
    check_architecture(config.student.arch)
    if data.bands == RGB:
        return config, InputBands.rgb(config.student.arch)
    teacher_places(data.bands, config.teacher.bands)
    if not (data.band_mean and data.band_std):
        found = on_main_process(accelerator, lambda: band_statistics(source, data.bands))
        mean, std = data.band_mean or found.mean, data.band_std or found.std
        data = dataclasses.replace(data, band_mean=mean, band_std=std)
        log.info("bands %s: mean %s, std %s", " ".join(data.bands), mean, std)
    return (
        dataclasses.replace(config, data=data),
        InputBands(data.bands, data.band_mean, data.band_std),
    )


def build_distiller(config: DistillConfig, student: PixelGrid, teacher: Teacher) -> Distiller:
    """Build student, head and loss: everything that has gradients."""
    head = student_head(student.num_channels, head_layout(config, teacher.num_channels))
    loss = build_loss(config.method)
    return Distiller(student, head, loss=loss, pooled=config.method.targets == "pooled")


def head_layout(config: DistillConfig, num_channels: int) -> HeadLayout:
    """Return the layout of the student's head with ``num_channels`` outputs."""
    layout = STUDENT_HEADS[config.method.head]
    mlps = tuple(
        (*(config.method.head_width or width for width in hidden), num_channels)
        for *hidden, _ in layout.mlps
    )
    return dataclasses.replace(layout, mlps=mlps)


def build_loss(method: PixelMethodConfig) -> PixelLoss:
    """Return the loss with its temperature."""
    if method.loss == "cosine_smooth_l1":
        return cosine_smooth_l1
    assert method.temperature is not None, "resolve() fills it in"
    loss = pixel_info_nce if method.loss == "pixel_info_nce" else similarity_kl
    return functools.partial(loss, temperature=method.temperature)


def build_teacher_statistics(
    config: DistillConfig, teacher: Teacher
) -> tuple[KeyQueue | None, ChannelMoments | None]:
    """Build the negatives or channel statistics that the loss needs besides the feature maps.

    They are saved in checkpoints, and are not part of the wrapped network.
    """
    match config.method.loss:
        case "pixel_info_nce":
            length = config.method.queue_length
            return KeyQueue(length, teacher.num_channels, seed=config.run.seed), None
        case "cosine_smooth_l1":
            return None, ChannelMoments(teacher.num_channels)
        case "similarity_kl":
            return None, None
