"""Named configurations of ``recipes/finetune_seg.py``, their schedule, and their protocol."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.fields import (
    Bounds,
    Channels,
    Count,
    ImageSide,
    LabelShare,
    Positive,
    Workers,
    as_typed,
)
from pcd_hub.train.configs.finetune import FinetuneRunConfig, SGDConfig, scaled
from pcd_hub.train.configs.labelled import SegmentationSetConfig

Scale = Annotated[float, Bounds(float, 0, 100, above=True)]


@dataclass(frozen=True, kw_only=True)
class FinetuneDataConfig(SegmentationSetConfig):
    """Images with a class label for every pixel, and the training crops drawn from them."""

    crop_size: tuple[ImageSide, ImageSide] = (512, 512)
    """Height and width in pixels of a training crop; evaluation takes whole images."""
    scales: tuple[Scale, Scale] = (0.5, 2.0)
    """Smallest and largest scale; an image is resized by a random one before it is cropped."""
    train_share: LabelShare = 1.0
    """Share of the training images to use, drawn with --run.seed; at the
    same seed a smaller share is part of a larger one."""
    num_workers: Workers | None = None
    """Loader processes per training process. None: 1 on a CPU, up to 16 with a GPU."""

    def validate(self, group: str) -> None:
        """Reject scales in the wrong order."""
        if self.scales[0] > self.scales[1]:
            raise ConfigError(
                f"{group}scales {as_typed(self.scales)}: expected the smaller first, as 0.5 2.0"
            )


@dataclass(frozen=True, kw_only=True)
class FCNConfig:
    """The FCN head on the backbone."""

    output_stride: Literal[8, 16, 32] = 16
    """Stride in pixels of the backbone's last feature map. With 8 or 16 the
    last stages are dilated instead, which not every architecture
    supports."""
    channels: Channels = 256
    """Channels of the head's two 3x3 convolutions."""
    dilation: Annotated[int, Bounds(int, 1, 1000)] = 1
    """Dilation of the head's two 3x3 convolutions."""
    norm: Literal["sync", "batch", "frozen"] = "sync"
    """BatchNorm. sync: trained, with statistics over all processes (GPUs
    only). batch: trained, with each process's own statistics. frozen:
    weights and statistics of the backbone are fixed, the head's are
    trained as with batch; not for random weights, where timm initialises
    the last norm of each block to 0."""


@dataclass(frozen=True, kw_only=True)
class SegmentationOptimConfig(SGDConfig):
    """SGD and its schedule, stated for a reference batch size.

    With a global batch size of B the learning rate is multiplied by B / reference-batch-size and
    the iterations are divided by it, so that training sees the same number of images.
    """

    lr: Positive = 0.01
    """Initial learning rate at the reference batch size."""
    iterations: Count = 40_000
    """Number of steps at the reference batch size."""
    power: Positive = 0.9
    """Exponent of the polynomial decay: lr * (1 - step / steps) ** power."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSegConfig:
    """Fine-tune a backbone with an FCN head for semantic segmentation."""

    model: str = "resnet18.pcd"
    """Backbone: resnet18.pcd, random:ARCH, teacher:SOURCE, local-dir:DIR,
    hf-hub:ORG/NAME, or any timm model name."""
    data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    fcn: FCNConfig = field(default_factory=FCNConfig)
    optim: SegmentationOptimConfig = field(default_factory=SegmentationOptimConfig)
    run: FinetuneRunConfig = field(default_factory=FinetuneRunConfig)


FINETUNE_SEG: dict[str, FinetuneSegConfig] = {
    "small": FinetuneSegConfig(
        data=FinetuneDataConfig(crop_size=(128, 128)),
        fcn=FCNConfig(norm="batch"),
        optim=SegmentationOptimConfig(reference_batch_size=8, global_batch_size=8, iterations=150),
        run=FinetuneRunConfig(log_every_steps=10, checkpoint_every_steps=75),
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
"""small: takes minutes on a CPU.

cityscapes, voc, ade20k: the official downloads, 40k steps of 16 images; not tuned.
"""


@dataclass(frozen=True, kw_only=True)
class PolynomialSchedule:
    """Polynomial decay, in optimizer steps of this run."""

    peak_lr: float
    steps: int
    power: float

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 0."""
        return self.peak_lr * (1 - step / self.steps) ** self.power


def scaled_schedule(
    config: SegmentationOptimConfig, *, max_steps: int | None = None
) -> PolynomialSchedule:
    """Return the schedule for the configured global batch size.

    Args:
        config: The schedule, stated for its ``reference_batch_size``.
        max_steps: If given, fit the schedule to this many steps.
    """
    peak_lr, steps = scaled(config, max_steps=max_steps)
    return PolynomialSchedule(peak_lr=peak_lr, steps=steps, power=config.power)


PROTOCOL_VERSION = 1
"""Raise it with every change that may change scores under the same protocol sentence."""


def protocol(
    config: FinetuneSegConfig,
    schedule: PolynomialSchedule,
    *,
    batch_size_per_process: int,
    training_set: str,
    mixed_precision: str,
) -> str:
    """Return one sentence with every choice that changes the results."""
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
