"""Named configurations of ``recipes/linear_cls.py``, their schedule, and their protocol."""

import math
from dataclasses import dataclass, field

from pcd_hub.train.configs.fields import Area, Count, NotNegative, Positive, Share
from pcd_hub.train.configs.finetune import FinetuneRunConfig
from pcd_hub.train.configs.labelled import ClassificationDataConfig


@dataclass(frozen=True, kw_only=True)
class LinearClsDataConfig(ClassificationDataConfig):
    """Images with one class each, and the training crops drawn from them."""

    min_crop_area: Area = 0.08
    """Smallest random crop, as a share of the image area; the largest is 1."""


@dataclass(frozen=True, kw_only=True)
class LinearClsOptimConfig:
    """SGD and its schedule; the learning rate changes once per epoch."""

    global_batch_size: Count = 1024
    """Images per step, summed over processes."""
    lr_per_256: Positive = 0.1
    """Initial learning rate for a global batch of 256; scaled linearly with the global batch."""
    epochs: Count = 90
    """Passes over the training split."""
    lr_drops: tuple[Count, ...] = ()
    """Epochs after which the learning rate is divided by 10. If empty: half a cosine to 0."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 0.0
    """Weight decay."""


@dataclass(frozen=True, kw_only=True)
class LinearClsConfig:
    """Train a linear classifier on a frozen backbone, as MoCo does on ImageNet."""

    model: str = "resnet18.pcd"
    """Backbone: resnet18.pcd, random:ARCH, teacher:SOURCE, local-dir:DIR,
    hf-hub:ORG/NAME, or any timm model name."""
    data: LinearClsDataConfig = field(default_factory=LinearClsDataConfig)
    optim: LinearClsOptimConfig = field(default_factory=LinearClsOptimConfig)
    run: FinetuneRunConfig = field(default_factory=FinetuneRunConfig)


LINEAR_CLS: dict[str, LinearClsConfig] = {
    "small": LinearClsConfig(
        data=LinearClsDataConfig(image_size=112),
        optim=LinearClsOptimConfig(global_batch_size=32, lr_per_256=3.0, epochs=10),
        run=FinetuneRunConfig(log_every_steps=10),
    ),
    "imagenet_mocov3": LinearClsConfig(data=LinearClsDataConfig(source="imagenet")),
    "imagenet_mocov2": LinearClsConfig(
        data=LinearClsDataConfig(source="imagenet"),
        optim=LinearClsOptimConfig(
            global_batch_size=256, lr_per_256=30.0, epochs=100, lr_drops=(60, 80)
        ),
    ),
}
"""small: takes minutes on a CPU; not a published protocol.

imagenet_mocov3: main_lincls.py of facebookresearch/moco-v3 for ResNets. imagenet_mocov2:
main_lincls.py of facebookresearch/moco. Both on a folder with train/ and val/; not run.
"""


@dataclass(frozen=True, kw_only=True)
class EpochSchedule:
    """Learning rate by epoch, in optimizer steps of this run."""

    peak_lr: float
    steps: int
    epochs: int
    drops: tuple[int, ...]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the epoch to which ``step``, counted from 0, belongs."""
        epoch = step * self.epochs // self.steps
        if self.drops:
            return self.peak_lr * 0.1 ** sum(epoch >= drop for drop in self.drops)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


def epoch_schedule(
    config: LinearClsOptimConfig, *, num_images: int, max_steps: int | None
) -> EpochSchedule:
    """Return the schedule for a training split.

    Args:
        config: Epochs, batch size and learning rate.
        num_images: Size of the training split; the incomplete last batch of an epoch is dropped.
        max_steps: If given, fit the schedule to this many steps.
    """
    per_epoch = max(1, num_images // config.global_batch_size)
    return EpochSchedule(
        peak_lr=config.lr_per_256 * config.global_batch_size / 256,
        steps=config.epochs * per_epoch if max_steps is None else max_steps,
        epochs=config.epochs,
        drops=config.lr_drops,
    )


PROTOCOL_VERSION = 1
"""Raise it with every change that may change scores under the same protocol sentence."""


def protocol(
    config: LinearClsConfig, schedule: EpochSchedule, *, training_set: str, mixed_precision: str
) -> str:
    """Return one sentence with every choice that changes the results."""
    data, stated, size = config.data, config.optim, config.data.image_size
    falling = (
        f"a tenth after epochs {', '.join(map(str, stated.lr_drops))}"
        if stated.lr_drops
        else "along half a cosine by epoch"
    )
    precision = f", mixed precision {mixed_precision}" if mixed_precision != "no" else ""
    return (
        "frozen backbone in eval mode; one linear layer on the mean of its last map (of a ViT's "
        f"patches, not its class token), trained on {training_set} for {schedule.steps} steps of "
        f"{stated.global_batch_size} ({stated.epochs} epochs, incomplete batches dropped), SGD "
        f"{schedule.peak_lr:g}, {falling}, momentum {stated.momentum:g}, weight decay "
        f"{stated.weight_decay:g}, no sweep{precision}; random crops of "
        f"{data.min_crop_area:g} to 1 of the area at {size} x {size}, mirrored by half; scored "
        "after the last epoch on centre crops "
        f"(7/8 of the shorter side, at {size} x {size}); bicubic where the papers' code is bilinear"
    )
