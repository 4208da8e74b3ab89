"""Training of a projection head for a teacher without one (``recipes/fit_head.py``).

The teacher is frozen: its pooled features of a few views of each image are computed once, and the
head is trained on them by contrast, as in SimCLR (arXiv:2002.05709), in large batches. The result
is a teacher's folder, whose head PCD's SpatialAdaptor applies to feature maps.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pcd_hub.data.batch_plan import BatchPlan, StepSampler
from pcd_hub.data.survey.result import MAX_BROKEN_SHARE
from pcd_hub.data.views import TwoViewTransform
from pcd_hub.errors import DataError
from pcd_hub.files.strict_json import printable
from pcd_hub.method.encoder import projector
from pcd_hub.method.simclr import ProjectedVectors
from pcd_hub.train.batches import plan_batches, resolve_run, view_seed
from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.configs.pretraining import SpeedConfig, resolve_augmentation
from pcd_hub.train.launch import finish, start_accelerator
from pcd_hub.train.optimizers import build_optimizer, learning_rate, optimizer_step
from pcd_hub.train.run import TrainingRun
from pcd_hub.train.run_folder.checkpoints import Checkpoints
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.train.speed import resolve_speed
from pcd_hub.train.teacher.cache.key import cache_facts, teacher_output
from pcd_hub.train.teacher.cache.preparing import prepare_folder
from pcd_hub.train.teacher.head.config import HeadConfig, HeadSpeedConfig, parse_fit_head
from pcd_hub.train.teacher.head.features import (
    Images,
    PooledFeatures,
    compute_features,
)
from pcd_hub.train.teacher.head.preparing import (
    HeadlessTeacher,
    check_processes,
    check_room,
    features_place,
    load_headless,
    open_images,
    split,
)
from pcd_hub.train.teacher.head.saving import HeadFitting, save_head

log = logging.getLogger("pcd_hub")

_MAX_NAMED = 10


def main(arguments: list[str]) -> None:
    """Parse the command line, compute the features, train the head, and save the teacher."""
    config_name, config = parse_fit_head(arguments)
    speed = SpeedConfig(precision=config.speed.precision)
    accelerator = start_accelerator(trackers=config.run.trackers, speed=speed)
    fitting = prepare(accelerator, config, config_name)
    held_out = train(fitting)
    with finishing(fitting.folder.path):
        finish(accelerator)
        save_head(fitting, held_out)
        fitting.folder.end_trackers()


def train(f: HeadFitting) -> Images:
    """Compute the features that are missing, and train the head; return the held-out images."""
    accelerator, config, plan = f.accelerator, f.config, f.plan
    optimizer = build_optimizer(f.network, config.optim, SpeedConfig())
    wrapped, optimizer = accelerator.prepare(f.network, optimizer)
    state = {"network": f.network, "optimizer": optimizer}
    run = TrainingRun(
        accelerator=accelerator,
        folder=f.folder,
        plan=plan,
        open_batches=lambda plan, _: feature_batches(f.features, training, plan),
        network=f.network,
        optimizer=optimizer,
        state=state,
        learning_rate=lambda step: learning_rate(step, config.optim, plan.total_steps),
        lr_option="--optim.lr-per-256",
        num_images=len(f.images),
    )
    if not config.run.resume:  # for a run that is resumed before its first step
        start = {name: part.state_dict() for name, part in state.items()}
        Checkpoints(f.folder, accelerator).save(0, start, {})
    run.start()
    training, held_out = complete_features(f)
    log.info(
        "a head for %s: %d steps, results in %s",
        *(config.teacher.source, plan.total_steps, f.folder.path),
    )
    wrapped.train()
    for _, (batch,) in run.steps():
        loss, norm = training_step(f, wrapped, optimizer, batch)
        run.end_step(loss, norm)
    return held_out


def training_step(
    f: HeadFitting, network: nn.Module, optimizer: Any, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Update the head by one batch; return the loss and the gradient norm."""
    device = f.accelerator.device
    with f.accelerator.autocast():
        loss = network(*(view.to(device) for view in batch))
    f.accelerator.backward(loss)
    norm = optimizer_step(
        network, optimizer, f.accelerator, clip_grad_norm=f.config.optim.clip_grad_norm
    )
    return loss.detach(), norm


def feature_batches(
    features: PooledFeatures, images: Images, plan: BatchPlan
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two different views of each image of a batch, a function of seed and step.

    Args:
        features: The features.
        images: The images to train on.
        plan: Steps and batch size.
    """
    samples = StepSampler(len(images), plan)
    for step, batch in zip(itertools.count(plan.start_step), samples, strict=False):
        chosen = images[[index for _, index in batch]]
        generator = np.random.default_rng((plan.seed, step))
        first = generator.integers(features.num_views, size=len(chosen))
        other = generator.integers(1, features.num_views, size=len(chosen))
        second = (first + other) % features.num_views
        yield features.of(chosen, first), features.of(chosen, second)


def complete_features(f: HeadFitting) -> tuple[Images, Images]:
    """Compute the features that are missing; return the images to train on and the held-out ones.

    Raises:
        DataError: If too many images are broken.
    """
    broken = compute_features(
        f.features,
        f.teacher.teacher,
        f.images,
        view_transform(f.config),
        num_workers=f.config.data.num_workers or 0,
        accelerator=f.accelerator,
        run_folder=f.folder.path,
    )
    f.num_broken, total = len(broken), len(f.images)
    for name in broken[:_MAX_NAMED]:
        log.warning("skipped a broken image: %s", printable(name))
    if len(broken) > MAX_BROKEN_SHARE * total:
        raise DataError(
            f"{len(broken)} of {total} images cannot be read, expected at most "
            f"{MAX_BROKEN_SHARE:.0%}; repair or remove them, the first is {printable(broken[0])}"
        )
    complete = f.features.complete_images()
    training, held_out = split(f.images, f.config.data.held_out)
    return np.intersect1d(training, complete), np.intersect1d(held_out, complete)


def view_transform(config: HeadConfig) -> TwoViewTransform:
    """Return the transform of an image to a pair of views."""
    first, second = config.data.view_policies()
    return TwoViewTransform(
        image_size=config.data.image_size,
        first=first,
        second=second,
        seed=view_seed(config.data, config.run.seed),
        view_epochs=config.data.view_epochs,
    )


def prepare(accelerator: Accelerator, config: HeadConfig, config_name: str) -> HeadFitting:
    """Build everything; invalid settings raise before the output folder is created.

    Raises:
        ConfigError: If there are several processes, too few images for a batch, or the folders
            cannot be used.
        DataError: If the images cannot be used.
        TeacherError: If the teacher cannot be used, or has a head.
    """
    check_processes(accelerator)
    images = open_images(config)
    training, _ = split(images, config.data.held_out)
    plan = plan_batches(
        accelerator,
        global_batch_size=config.optim.global_batch_size,
        total_steps=config.run.max_steps or _steps(config, len(training)),
        seed=config.run.seed,
        num_images=len(training),
        images=f"--data.source has {len(images)} images, {len(training)} of them to train on",
    )
    teacher = load_headless(config.teacher, config.data, device=accelerator.device)
    requested, config = config, resolve(config, teacher, accelerator, plan)
    torch.manual_seed(config.run.seed)
    network = build_network(config, teacher)
    everything = nn.ModuleList([teacher.teacher.grid.model, network])
    check_places(accelerator, everything, run=config.run, stored_as=None)
    facts = cache_facts(
        teacher.teacher,
        config.data,
        images=images.fingerprint(),
        num_images=len(images),
        values="pooled float16",
        view_seed=view_seed(config.data, config.run.seed),
        precision=config.speed.precision,
    )
    check_room(config, facts, network=everything)
    teacher.teacher.to(accelerator.device)
    output = teacher_output(teacher.teacher, config.data)
    sha256 = teacher.teacher.facts.sha256
    folder = RunFolder.open(
        accelerator,
        config,
        requested=requested,
        default_name=config_name,
        inputs={"data": images.fingerprint(), "teacher": f"sha256 {sha256}"},
    )
    return HeadFitting(
        config=config,
        config_name=config_name,
        accelerator=accelerator,
        folder=folder,
        images=images,
        plan=plan,
        teacher=teacher,
        features=PooledFeatures(
            prepare_folder(features_place(config, folder.path), facts, output),
            num_images=len(images),
            view_epochs=config.data.view_epochs,
            channels=teacher.teacher.num_channels,
        ),
        network=network.to(accelerator.device),
    )


def build_network(config: HeadConfig, teacher: HeadlessTeacher) -> ProjectedVectors:
    """Build the head with random weights, and its loss."""
    method = config.method
    head = projector(
        teacher.teacher.num_channels,
        hidden_width=method.head_width,
        dim=method.dim,
        num_layers=method.num_layers,
    )
    return ProjectedVectors(head, temperature=method.temperature)


def resolve(
    config: HeadConfig, teacher: HeadlessTeacher, accelerator: Accelerator, plan: BatchPlan
) -> HeadConfig:
    """Return the configuration with all defaults resolved; it reproduces the same run."""
    config = resolve_run(config, plan, accelerator.device)
    data = resolve_augmentation(config.data)
    facts = teacher.teacher.facts
    precision = resolve_speed(SpeedConfig(), accelerator, steps=plan.total_steps).precision
    return dataclasses.replace(
        config,
        data=data,
        speed=HeadSpeedConfig(precision=precision),
        teacher=dataclasses.replace(
            config.teacher,
            source=facts.source,
            image_size=teacher.teacher.input_size or data.image_size,
            mean=facts.mean,
            std=facts.std,
        ),
    )


def _steps(config: HeadConfig, num_images: int) -> int:
    return config.optim.epochs * max(1, num_images // config.optim.global_batch_size)


if __name__ == "__main__":
    run_main(main)
