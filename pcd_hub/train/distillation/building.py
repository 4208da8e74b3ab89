"""Build the networks of a distillation and resolve its configuration."""

import copy
import dataclasses
import functools
import logging

import torch
from accelerate import Accelerator

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.multiband.names import RGB
from pcd_hub.data.multiband.statistics import band_statistics
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.method.distiller import Distiller, PixelLoss, freeze_unused_parameters
from pcd_hub.method.heads import STUDENT_HEADS, HeadLayout, student_head
from pcd_hub.method.loss import cosine_smooth_l1, pixel_info_nce, similarity_kl
from pcd_hub.method.moments import ChannelMoments
from pcd_hub.method.queue import KeyQueue
from pcd_hub.models.entries import check_architecture
from pcd_hub.models.grid import FinestMap, PixelGrid
from pcd_hub.models.teachers import Teacher
from pcd_hub.train.batches import (
    Normalise,
    count_images,
    plan_epochs,
    resolve_run,
)
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.configs.labelled import resolve_probe_data
from pcd_hub.train.configs.method import PixelMethodConfig, resolve_method
from pcd_hub.train.configs.pretraining import resolve_augmentation
from pcd_hub.train.distillation.early_views import check_student_takes, resolve_early_views
from pcd_hub.train.distillation.memory import warn_of_large_batch
from pcd_hub.train.distillation.resident import resolve_resident
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.launch import on_main_process
from pcd_hub.train.networks import build_backbone
from pcd_hub.train.results.weight import check_weight_name
from pcd_hub.train.run_folder.preflight import check_places
from pcd_hub.train.speed import resolve_speed
from pcd_hub.train.student.weights import StartWeight, load_start
from pcd_hub.train.students.own_state import OwnState
from pcd_hub.train.teacher.loading import load_teacher
from pcd_hub.weights.export import check_exportable
from pcd_hub.weights.input_bands import InputBands

log = logging.getLogger("pcd_hub")


def build(
    accelerator: Accelerator,
    config: DistillConfig,
    config_name: str,
    source: ImageSource | ImageStream,
    given: Teacher | None = None,
) -> Distillation:
    """Build the networks and what belongs to them, on the CPU."""
    size = config.data.image_size
    torch.manual_seed(config.run.seed)
    plan = plan_epochs(source, config.optim, config.run, accelerator)
    config, bands = resolve_bands(accelerator, config, source)
    config = dataclasses.replace(config, data=resolve_early_views(config.data))
    warn_of_large_batch(
        config,
        images=plan.batch_size,
        device=accelerator.device,
        precision=str(accelerator.mixed_precision),
    )
    student, start_weight = build_student(config, bands)
    check_student_takes(student, config.data, config.student.arch)
    start = copy.deepcopy(student.model)
    check_places(
        accelerator,
        start,
        run=config.run,
        stored_as=check_weight_name(config) if config.run.store else None,
    )
    check_exportable(start, config.student.arch, image_size=size, bands=bands)
    untrained = freeze_unused_parameters(student, student.example(size))
    finest = FinestMap(student, config.method.feature_maps, image_size=size)
    teacher = load_teacher(
        config, finest, plan=plan, source=source, accelerator=accelerator, given=given
    )
    config = with_start(config, start_weight)
    config = resolve(config, accelerator=accelerator, plan=plan, source=source, teacher=teacher)
    distiller = build_distiller(config, finest, teacher)
    queue, moments = build_teacher_statistics(config, teacher)
    return Distillation(
        config=config,
        config_name=config_name,
        accelerator=accelerator,
        source=source,
        plan=plan,
        teacher=teacher,
        student=student.model,
        start=start,
        start_weight=start_weight,
        untrained=tuple(name.removeprefix("model.") for name in untrained),
        distiller=distiller,
        queue=queue,
        moments=moments,
        bands=bands,
        normalise=Normalise(bands, accelerator.device, channels_last=config.speed.channels_last),
        own_state=OwnState(accelerator),
    )


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
    config = resolve_run(config, plan, accelerator.device)
    data = resolve_augmentation(config.data)
    return dataclasses.replace(
        config,
        data=resolve_resident(data, source=source, plan=plan, accelerator=accelerator),
        probe_data=resolve_probe_data(config.probe_data, data.image_size),
        teacher=dataclasses.replace(
            config.teacher,
            image_size=teacher.input_size or data.image_size,
            mean=teacher.facts.mean,
            std=teacher.facts.std,
        ),
        method=resolve_method(config.method, num_images=count_images(source)),
        speed=resolve_speed(config.speed, accelerator, steps=plan.total_steps),
    )


def build_student(config: DistillConfig, bands: InputBands) -> tuple[PixelGrid, StartWeight | None]:
    """Build the student with the weights that it starts from; None if they are random."""
    arch, image_size = config.student.arch, config.data.image_size
    student = build_backbone(arch, image_size=image_size, in_chans=len(bands.names))
    weights = config.student.weights
    start_weight = load_start(
        student.model,
        weights,
        architecture=arch,
        image_size=image_size,
        bands=bands,
        band_range=config.data.band_range,
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
    if not (data.band_mean and data.band_std):
        found = on_main_process(accelerator, lambda: band_statistics(source, data.bands))
        mean, std = data.band_mean or found.mean, data.band_std or found.std
        data = dataclasses.replace(data, band_mean=mean, band_std=std)
        log.info("bands %s: mean %s, std %s", " ".join(data.bands), mean, std)
    return (
        dataclasses.replace(config, data=data),
        InputBands(data.bands, data.band_mean, data.band_std),
    )


def build_distiller(config: DistillConfig, finest: FinestMap, teacher: Teacher) -> Distiller:
    """Build student, heads and loss: everything that has gradients."""
    layout = head_layout(config, teacher.num_channels)
    head, *finer_heads = (student_head(channels, layout) for channels in finest.num_channels)
    return Distiller(
        finest.student,
        head,
        loss=build_loss(config.method),
        pooled=config.method.targets == "pooled",
        finer_heads=finer_heads,
    )


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
            queue = KeyQueue(config.method.queue_length, teacher.num_channels, seed=config.run.seed)
            centred = config.method.centre_targets
            return queue, ChannelMoments(teacher.num_channels, scales=False) if centred else None
        case "cosine_smooth_l1":
            return None, ChannelMoments(teacher.num_channels)
        case "similarity_kl":
            return None, None
