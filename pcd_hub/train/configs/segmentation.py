"""Named configurations of ``recipes/finetune_seg.py``, their learning rate, and their protocol."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.fields import (
    Bounds,
    Channels,
    Count,
    ImageSide,
    Positive,
    Seed,
    Workers,
    as_typed,
)
from pcd_hub.train.configs.finetune import FinetuneRunConfig, SGDScheduleConfig, scaled
from pcd_hub.train.configs.probes import SegmentationSetConfig

Scale = Annotated[float, Bounds(float, 0, 100, above=True)]


@dataclass(frozen=True, kw_only=True)
class FinetuneDataConfig(SegmentationSetConfig):
    """Images with the class of every pixel, and what is drawn from them in training."""

    crop_size: tuple[ImageSide, ImageSide] = (512, 512)
    """Height and width in pixels of a training crop; the test takes whole images."""
    scales: tuple[Scale, Scale] = (0.5, 2.0)
    """Bounds of the factor by which an image is resized before it is cropped; evenly drawn."""
    num_workers: Workers | None = None
    """Processes that read images, per training process. Default: 1 on CPU, else up to 16."""

    def check(self, group: str) -> None:
        """Refuse scales in the wrong order."""
        if self.scales[0] > self.scales[1]:
            raise ConfigError(
                f"{group}scales {as_typed(self.scales)}: give the smaller first, as 0.5 2.0"
            )


@dataclass(frozen=True, kw_only=True)
class FCNConfig:
    """What is built on the backbone."""

    output_stride: Literal[8, 16, 32] = 16
    """Pixels between the columns of the backbone's last map.

    8 and 16: the last stages are dilated instead of strided, which not every architecture takes.
    """
    channels: Channels = 256
    """Of the head's two 3 x 3 convolutions."""
    dilation: Annotated[int, Bounds(int, 1, 1000)] = 1
    """Of the same."""
    norm: Literal["sync", "batch", "frozen"] = "sync"
    """Batch norm.

    sync: trained, statistics over all processes (GPUs only). batch: trained, each process its own.
    frozen: the backbone's statistics and weights stay as they are, the head's are trained as with
    batch. Not for a random start, whose blocks end in norms that timm sets to 0.
    """


@dataclass(frozen=True, kw_only=True)
class FinetuneScheduleConfig(SGDScheduleConfig):
    """Steps and learning rate, stated for ``reference_batch_size``.

    With another ``global_batch_size`` B the learning rate is multiplied by B / reference and the
    iterations by reference / B, so the number of pictures seen stays the same.
    """

    lr: Positive = 0.01
    """At the first step."""
    iterations: Count = 40_000
    power: Positive = 0.9
    """The learning rate falls as (1 - share of the steps done) to this power."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSegRunConfig(FinetuneRunConfig):
    """Where and how long. Except for seed and max_steps, nothing here changes the result."""

    seed: Seed = 0
    """Of the head, the batches, the crops, and of a random start."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSegConfig:
    """recipes/finetune_seg.py."""

    model: str = "resnet18.pcd"
    """The backbone, as recipes/models_under_test.py lists: resnet18.pcd, random:resnet18 ..."""
    data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    fcn: FCNConfig = field(default_factory=FCNConfig)
    optim: FinetuneScheduleConfig = field(default_factory=FinetuneScheduleConfig)
    run: FinetuneSegRunConfig = field(default_factory=FinetuneSegRunConfig)


FINETUNE_SEG: dict[str, FinetuneSegConfig] = {
    "small": FinetuneSegConfig(
        data=FinetuneDataConfig(crop_size=(128, 128)),
        fcn=FCNConfig(norm="batch"),
        optim=FinetuneScheduleConfig(reference_batch_size=8, global_batch_size=8, iterations=150),
        run=FinetuneSegRunConfig(log_every_steps=10, checkpoint_every_steps=75),
    ),
    "cityscapes_r18_fcn": FinetuneSegConfig(
        data=FinetuneDataConfig(source="cityscapes:cityscapes", crop_size=(768, 768))
    ),
    "voc_r18_fcn": FinetuneSegConfig(data=FinetuneDataConfig(source="voc:VOCdevkit/VOC2012")),
    "ade20k_r18_fcn": FinetuneSegConfig(
        data=FinetuneDataConfig(
            source="ade20k:ADEChallengeData2016",
            train_split="training",
            test_split="validation",
        )
    ),
}
"""small: for a CPU, minutes.

cityscapes, voc, ade20k: the official downloads, 40k steps of 16; nothing in them was tuned.
"""


@dataclass(frozen=True, kw_only=True)
class PolynomialSchedule:
    """A schedule in optimizer steps of this run."""

    peak_lr: float
    steps: int
    power: float

    def learning_rate(self, step: int) -> float:
        """Of ``step``, counted from 0; after the last it would be 0."""
        return self.peak_lr * (1 - step / self.steps) ** self.power


def scaled_schedule(
    config: FinetuneScheduleConfig, *, max_steps: int | None = None
) -> PolynomialSchedule:
    """The schedule for the batch that is used.

    Args:
        config: Stated for its ``reference_batch_size``.
        max_steps: If given, the schedule is squeezed into so many steps.
    """
    peak_lr, steps = scaled(config, max_steps=max_steps)
    return PolynomialSchedule(peak_lr=peak_lr, steps=steps, power=config.power)


def protocol(
    config: FinetuneSegConfig,
    schedule: PolynomialSchedule,
    *,
    batch_size_per_process: int,
    training_set: str,
    mixed_precision: str,
) -> str:
    """One sentence with every choice that changes the numbers."""
    fcn, (height, width), (low, high) = config.fcn, config.data.crop_size, config.data.scales
    size = config.optim.global_batch_size
    together = size if fcn.norm == "sync" else batch_size_per_process
    precision = f", mixed precision {mixed_precision}" if mixed_precision != "no" else ""
    backbone_norm = ", the backbone's frozen" if fcn.norm == "frozen" else ""
    return (
        f"FCN (two 3 x 3 convolutions of {fcn.channels}, dilation {fcn.dilation}, then 1 x 1) on "
        f"the last map at output stride {fcn.output_stride}, everything trained, batch norm over "
        f"{together} images{backbone_norm}, on {training_set} for {schedule.steps} steps of {size} "
        f"crops of {height} x {width} at scales {low:g} to {high:g}, padded with the mean colour, "
        "mirrored by half, no other augmentation, no auxiliary head; SGD "
        f"{schedule.peak_lr:g} falling to 0 with power {schedule.power:g}, momentum "
        f"{config.optim.momentum:g}, weight decay {config.optim.weight_decay:g} but on "
        f"norms, no warm-up{precision}; whole images at one scale, no sliding window, mean IoU of "
        "the classes in truth or prediction"
    )
