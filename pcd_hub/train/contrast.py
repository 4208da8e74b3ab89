"""Contrastive pre-training of a teacher with a trained head: MoCo v3 or SimCLR for timm ResNets.

    accelerate launch -m pcd_hub.train.contrast mocov3_r50 --data.source IMAGES
    pcd-hub distill --teacher.source local-dir:runs/mocov3_r50/teacher ...

MoCo v3: arXiv:2104.02057. SimCLR: arXiv:2002.05709, for small batches and little time.
``--method.loss cross_entropy --method.labels FILE`` trains with class labels, for comparison.
"""

import functools
import logging
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pcd_hub.data.labelled.image_classes import image_classes
from pcd_hub.data.loader import Batch
from pcd_hub.data.multiband.names import RGB
from pcd_hub.errors import ConfigError
from pcd_hub.method.moco import momentum_update
from pcd_hub.method.schedule import momentum_to_one
from pcd_hub.train.batches import (
    Normalise,
    count_images,
    open_batches,
    open_training_source,
    plan_epochs,
)
from pcd_hub.train.configs.command_line import parse, run_main
from pcd_hub.train.configs.contrast import CONTRAST, ContrastConfig
from pcd_hub.train.contrast_parts import Pretraining, build_contrast, move_to_device, resolve
from pcd_hub.train.launch import finish, start_accelerator
from pcd_hub.train.optimizers import build_optimizer, learning_rate, optimizer_step
from pcd_hub.train.results.teacher import save_pretrained
from pcd_hub.train.run import TrainingRun
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.weights.input_bands import InputBands

log = logging.getLogger("pcd_hub")


def main(arguments: list[str]) -> None:
    """Parse the command line, pre-train, and save the teacher."""
    config_name, config = parse(CONTRAST, "mocov3_r50", arguments)
    accelerator = start_accelerator(
        trackers=config.run.trackers, speed=config.speed, static_graph=True
    )
    pretraining = prepare(accelerator, config, config_name)
    train(pretraining)
    with finishing(pretraining.folder.path):
        finish(accelerator)
        if accelerator.is_main_process:
            save_pretrained(pretraining)
            pretraining.folder.end_trackers()


def train(p: Pretraining) -> None:
    """Train the encoder; MoCo v3's momentum encoder follows it."""
    accelerator, config, plan = p.accelerator, p.config, p.plan
    optimizer = build_optimizer(p.contrast, config.optim, config.speed)
    wrapped, optimizer = accelerator.prepare(p.contrast, optimizer)
    momentum_state = {} if p.momentum_encoder is None else {"momentum_encoder": p.momentum_encoder}
    run = TrainingRun(
        accelerator=accelerator,
        folder=p.folder,
        plan=plan,
        open_batches=functools.partial(open_batches, p.source, config.data, accelerator.device),
        network=p.contrast,
        optimizer=optimizer,
        state={"contrast": p.contrast, "optimizer": optimizer, **momentum_state},
        learning_rate=lambda step: learning_rate(step, config.optim, plan.total_steps),
        lr_option="--optim.lr-per-256",
        num_images=count_images(p.source),
    )
    log.info(
        "%s %s: %d steps, results in %s",
        *(config.method.loss, config.encoder.arch, plan.total_steps, p.folder.path),
    )
    wrapped.train()
    for step, (batch,) in run.steps():
        loss, norm = training_step(p, wrapped, optimizer, batch, step)
        run.end_step(loss, norm)


def training_step(
    p: Pretraining, contrast: nn.Module, optimizer: Any, batch: Batch, step: int
) -> tuple[Tensor, Tensor]:
    """Update the encoders by one batch; return this process's loss and gradient norm.

    Args:
        p: Momentum encoder and configuration.
        contrast: Encoder, heads and loss, wrapped by the Accelerator.
        optimizer: Optimizer, wrapped by the Accelerator.
        batch: This process's part of the global batch.
        step: Number of the step, which sets the momentum.
    """
    first, second = p.normalise(p.normalise.images(batch)).chunk(2)
    with p.accelerator.autocast():
        targets = (
            momentum_keys(p, first, second, step)
            if p.classes is None
            else (p.classes[batch.indices.to(p.classes.device)],)
        )
        loss = contrast(first, second, *targets)
    p.accelerator.backward(loss)  # outside autocast, which would round some gradients
    norm = optimizer_step(
        contrast, optimizer, p.accelerator, clip_grad_norm=p.config.optim.clip_grad_norm
    )
    return loss.detach(), norm


@torch.no_grad()
def momentum_keys(p: Pretraining, first: Tensor, second: Tensor, step: int) -> tuple[Tensor, ...]:
    """Update the momentum encoder and return its keys of both views; none for SimCLR."""
    encoder = p.momentum_encoder
    if encoder is None:
        return ()
    start, total_steps = p.config.method.momentum, p.plan.total_steps
    momentum = momentum_to_one(step, start=start, total_steps=total_steps)
    momentum_update(encoder, p.contrast.base_encoder, momentum=momentum)
    return encoder(first), encoder(second)


def prepare(accelerator: Accelerator, config: ContrastConfig, config_name: str) -> Pretraining:
    """Build everything; invalid settings raise before the output folder is created.

    Raises:
        ConfigError: If gradients are accumulated, or the images or folders cannot be used.
        StudentError: If the architecture is not a timm ResNet.
    """
    if config.data.bands != RGB:
        raise ConfigError(
            f"--data.bands {' '.join(config.data.bands)}: expected {' '.join(RGB)}, as a teacher "
            "takes RGB images"
        )
    torch.manual_seed(config.run.seed)
    source = open_training_source(config.data, accelerator)
    plan = plan_epochs(source, config.optim, config.run, accelerator)
    requested, config = config, resolve(config, accelerator=accelerator, plan=plan)
    if config.optim.accumulation_steps > 1:
        raise ConfigError(
            f"--optim.accumulation-steps {config.optim.accumulation_steps}: expected 1, as the "
            "loss contrasts the images of a whole batch; use more processes instead"
        )
    labels = config.method.labels
    found = image_classes(source, labels) if labels else None
    contrast, momentum_encoder, random_start = build_contrast(
        config, num_classes=len(found.classes) if found else 0
    )
    check_places(accelerator, contrast, run=config.run, stored_as=None)
    pretraining = Pretraining(
        config=config,
        config_name=config_name,
        accelerator=accelerator,
        folder=RunFolder.open(
            accelerator,
            config,
            requested=requested,
            default_name=config_name,
            inputs={
                "data": source.fingerprint(),
                **({"labels": found.fingerprint()} if found else {}),
            },
        ),
        source=source,
        plan=plan,
        contrast=contrast,
        classes=torch.tensor(found.labels, device=accelerator.device) if found else None,
        momentum_encoder=momentum_encoder,
        random_start=random_start,
        normalise=Normalise(
            InputBands.rgb(config.encoder.arch),
            accelerator.device,
            channels_last=config.speed.channels_last,
        ),
    )
    move_to_device(pretraining)
    return pretraining


if __name__ == "__main__":
    run_main(main)
