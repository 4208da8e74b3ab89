"""Named configurations of ``recipes/linear_cls.py``, their learning rate, and their protocol."""

import math
from dataclasses import dataclass, field

from pcd_hub.train.configs.fields import Area, Count, NotNegative, Positive, Seed, Share
from pcd_hub.train.configs.finetune import FinetuneRunConfig
from pcd_hub.train.configs.probes import ClassificationDataConfig


@dataclass(frozen=True, kw_only=True)
class LinearClsDataConfig(ClassificationDataConfig):
    """Images with one class each, and what is drawn from them in training."""

    min_crop_area: Area = 0.08
    """Least share of an image's area in a random resized crop; the largest is 1."""


@dataclass(frozen=True, kw_only=True)
class LinearClsScheduleConfig:
    """SGD with momentum; the learning rate changes from epoch to epoch."""

    global_batch_size: Count = 1024
    """Images a step, over all processes."""
    lr_per_256: Positive = 0.1
    """At the first epoch, for 256 images a step; proportional to ``global_batch_size``."""
    epochs: Count = 90
    lr_drops: tuple[Count, ...] = ()
    """Epochs after which the learning rate is divided by 10. If empty: half a cosine to 0."""
    momentum: Share = 0.9
    weight_decay: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class LinearClsRunConfig(FinetuneRunConfig):
    """Where and how long. Except for seed and max_steps, nothing here changes the result."""

    seed: Seed = 0
    """Of the classifier, the batches, the crops, and of a random start."""


@dataclass(frozen=True, kw_only=True)
class LinearClsConfig:
    """recipes/linear_cls.py."""

    model: str = "resnet18.pcd"
    """The backbone, as recipes/models_under_test.py lists: resnet18.pcd, random:resnet18 ..."""
    data: LinearClsDataConfig = field(default_factory=LinearClsDataConfig)
    optim: LinearClsScheduleConfig = field(default_factory=LinearClsScheduleConfig)
    run: LinearClsRunConfig = field(default_factory=LinearClsRunConfig)


LINEAR_CLS: dict[str, LinearClsConfig] = {
    "small": LinearClsConfig(
        data=LinearClsDataConfig(image_size=112),
        optim=LinearClsScheduleConfig(global_batch_size=32, lr_per_256=3.0, epochs=10),
        run=LinearClsRunConfig(log_every_steps=10),
    ),
    "imagenet_mocov3": LinearClsConfig(data=LinearClsDataConfig(source="imagenet")),
    "imagenet_mocov2": LinearClsConfig(
        data=LinearClsDataConfig(source="imagenet"),
        optim=LinearClsScheduleConfig(
            global_batch_size=256, lr_per_256=30.0, epochs=100, lr_drops=(60, 80)
        ),
    ),
}
"""small: for a CPU, minutes; its values are ours.

imagenet_mocov3: main_lincls.py of facebookresearch/moco-v3 for ResNets. imagenet_mocov2:
main_lincls.py of facebookresearch/moco. Both on a folder with train/ and val/; not run.
"""


@dataclass(frozen=True, kw_only=True)
class EpochSchedule:
    """A schedule in optimizer steps of this run."""

    peak_lr: float
    steps: int
    epochs: int
    drops: tuple[int, ...]

    def learning_rate(self, step: int) -> float:
        """Return that of the epoch that ``step``, counted from 0, lies in."""
        epoch = step * self.epochs // self.steps
        if self.drops:
            return self.peak_lr * 0.1 ** sum(epoch >= drop for drop in self.drops)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


def epoch_schedule(
    config: LinearClsScheduleConfig, *, num_images: int, max_steps: int | None
) -> EpochSchedule:
    """The schedule for so many training images.

    Args:
        config: Epochs and batch.
        num_images: To train on; what is left of an epoch after the last whole batch is dropped.
        max_steps: If given, the schedule is squeezed into so many steps.
    """
    per_epoch = max(1, num_images // config.global_batch_size)
    return EpochSchedule(
        peak_lr=config.lr_per_256 * config.global_batch_size / 256,
        steps=config.epochs * per_epoch if max_steps is None else max_steps,
        epochs=config.epochs,
        drops=config.lr_drops,
    )


def protocol(
    config: LinearClsConfig, schedule: EpochSchedule, *, training_set: str, mixed_precision: str
) -> str:
    """One sentence with every choice that changes the numbers."""
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
