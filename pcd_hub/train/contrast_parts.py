"""Parts of a contrastive pre-training: encoder, momentum encoder, compilation."""

import copy
from dataclasses import dataclass, replace
from typing import cast

from accelerate import Accelerator
from timm.models.resnet import ResNet
from torch import Tensor, nn

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.errors import StudentError
from pcd_hub.method.encoder import ProjectedEncoder
from pcd_hub.method.moco import MoCoV3, momentum_copy
from pcd_hub.method.simclr import SimCLR
from pcd_hub.method.supervised import PooledClassifier, Supervised
from pcd_hub.train.batches import Normalise, resolve_run
from pcd_hub.train.configs.contrast import ContrastConfig
from pcd_hub.train.configs.pretraining import resolve_augmentation
from pcd_hub.train.networks import build_backbone, memory_format, with_sync_batch_norm
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.speed import (
    compile_networks,
    has_sync_batch_norm,
    resolve_speed,
    run_once,
)


@dataclass(kw_only=True)
class Pretraining:
    """A pre-training that is ready to start, or finished."""

    config: ContrastConfig
    config_name: str
    accelerator: Accelerator
    folder: RunFolder
    source: ImageSource | ImageStream
    plan: BatchPlan
    contrast: MoCoV3 | SimCLR | Supervised
    """Encoder, heads and loss, not wrapped by the Accelerator."""
    classes: Tensor | None
    """Class of every image, on the device; None without labels."""
    momentum_encoder: ProjectedEncoder | None
    """Momentum encoder of MoCo v3; None for the other losses."""
    random_start: nn.Module
    """A copy of the backbone before training."""
    normalise: Normalise


def resolve(config: ContrastConfig, *, accelerator: Accelerator, plan: BatchPlan) -> ContrastConfig:
    """Return the configuration with all defaults resolved; it reproduces the same run."""
    config = resolve_run(config, plan, accelerator.device)
    return replace(
        config,
        data=resolve_augmentation(config.data),
        speed=resolve_speed(config.speed, accelerator, steps=plan.total_steps),
    )


def build_contrast(
    config: ContrastConfig, *, num_classes: int = 0
) -> tuple[MoCoV3 | SimCLR | Supervised, ProjectedEncoder | None, nn.Module]:
    """Build the network with its loss, the momentum encoder, and a copy of the random backbone.

    Args:
        config: The configuration.
        num_classes: For cross_entropy: number of classes.

    Raises:
        StudentError: If the architecture is not a timm ResNet.
    """
    backbone = build_backbone(config.encoder.arch, image_size=config.data.image_size)
    if not isinstance(backbone.model, ResNet):
        raise StudentError(
            f"--encoder.arch {config.encoder.arch}: expected a timm ResNet (resnet50, resnet18 ...)"
        )
    random_start = copy.deepcopy(backbone.model)
    method = config.method
    if method.loss == "cross_entropy":
        classifier = PooledClassifier(backbone, backbone.num_channels, num_classes=num_classes)
        return Supervised(classifier), None, random_start
    width, dim, temperature = method.head_width, method.dim, method.temperature
    encoder = ProjectedEncoder(backbone, backbone.num_channels, hidden_width=width, dim=dim)
    if method.loss == "simclr":
        return SimCLR(encoder, temperature=temperature), None, random_start
    moco = MoCoV3(encoder, hidden_width=width, dim=dim, temperature=temperature)
    return moco, cast("ProjectedEncoder", momentum_copy(encoder)), random_start


def move_to_device(p: Pretraining) -> None:
    """Move the networks to the device, with SyncBatchNorm and compiled as configured."""
    accelerator, speed = p.accelerator, p.config.speed
    layout = memory_format(channels_last=speed.channels_last)
    for network in filter(None, (p.contrast, p.momentum_encoder)):
        if p.config.optim.sync_batch_norm:
            with_sync_batch_norm(network, accelerator)
        network.to(accelerator.device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    if speed.compile:
        compile_encoders(p)


def compile_encoders(p: Pretraining) -> None:
    """Compile the encoders; MoCo v3's take one view after the other, others both at once."""
    if has_sync_batch_norm("encoder", p.contrast.base_encoder):
        return
    parts: dict[str, nn.Module] = {"encoder": p.contrast.base_encoder}
    images = p.normalise.example(2 * p.plan.batch_size, p.config.data.image_size)
    if p.momentum_encoder is not None:
        parts["momentum encoder"] = p.momentum_encoder
        images = images.chunk(2)[0]

    def one_pass() -> None:
        for encoder in parts.values():
            run_once(encoder, images, accelerator=p.accelerator)

    compile_networks(parts, one_pass, p.accelerator)
