"""Move a distillation to its device, compiled as configured."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from pcd_hub.method.distiller import Distiller
from pcd_hub.train.distillation.early_views import view_sizes
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.networks import memory_format, with_sync_batch_norm
from pcd_hub.train.speed import (
    compile_networks,
    compiles_training,
    has_sync_batch_norm,
    run_once,
)


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
    sizes = view_sizes(d.config.data)
    batches = [d.normalise.example(2 * d.plan.batch_size, size) for size in sizes]
    parts: dict[str, nn.Module] = {"teacher": d.teacher}
    if compiles_training(d.accelerator.device) and not has_sync_batch_norm("student", d.distiller):
        parts |= {"student": d.distiller.student, "head": d.distiller.head}

    def one_pass() -> None:
        for images in batches:
            with d.accelerator.autocast():
                target = d.teacher(images)
            if "student" in parts:
                negatives = () if d.queue is None else (d.queue.keys,)
                run_once(d.distiller, images, target, *negatives, accelerator=d.accelerator)

    # For a second shape, torch.compile would otherwise generate slower code for any shape.
    options = {"dynamic": False} if len(sizes) > 1 else {}
    compile_networks(parts, one_pass, d.accelerator, **options)
