"""Named configurations of ``recipes/pretrain.py``."""

from dataclasses import dataclass, field
from typing import Literal

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.fields import Channels, Positive, Share
from pcd_hub.train.configs.pretraining import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    ProbeScenes,
    SpeedConfig,
)
from pcd_hub.train.configs.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class ContrastMethodConfig:
    """Contrastive learning; the defaults are MoCo v3's."""

    loss: Literal["mocov3", "simclr", "cross_entropy"] = "mocov3"
    """mocov3: against a momentum encoder. simclr: no momentum encoder;
    faster with small batches. cross_entropy: classification with labels,
    on the same views, for comparison."""
    labels: str = ""
    """For cross_entropy: a CSV file with the columns file and class, where
    file is an image's path below --data.source; or folders, if the first
    folder of that path is the class."""
    temperature: Positive = 1.0
    """Temperature of the contrastive loss."""
    momentum: Share = 0.99
    """For mocov3: momentum of the momentum encoder at the start; it rises to 1."""
    head_width: Channels = 4096
    """Hidden width of projection and prediction head."""
    dim: Channels = 256
    """Output channels of the projection head."""

    def validate(self, group: str) -> None:
        """Reject labels without the loss that uses them, and the other way round."""
        if (self.loss == "cross_entropy") != bool(self.labels):
            raise ConfigError(
                f"{group}loss {self.loss} and {group}labels '{self.labels}': expected labels for "
                "cross_entropy alone"
            )


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Pre-train a ResNet, as a teacher for distillation; without labels, unless they are given."""

    encoder: ModelConfig = field(default_factory=lambda: ModelConfig(arch="resnet50"))
    data: DataConfig = field(default_factory=lambda: DataConfig(min_crop_area=0.2))
    method: ContrastMethodConfig = field(default_factory=ContrastMethodConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr_per_256=0.6, weight_decay=1e-6)
    )
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    run: RunConfig = field(default_factory=RunConfig)
    probe_scenes: ProbeScenes = 0
    """Number of generated scenes for a linear probe of random weights and of
    the encoder after training; 0: no probe."""


CONTRAST: dict[str, ContrastConfig] = {
    "quickstart_teacher": ContrastConfig(
        encoder=ModelConfig(arch="resnet10t"),
        data=DataConfig(
            source=("scenes:1000000:1",),
            image_size=48,
            min_crop_area=0.1,
            max_crop_area=0.6,
            hue=0.5,
            gray_probability=0.4,
        ),
        method=ContrastMethodConfig(loss="simclr", temperature=0.1, head_width=1024, dim=128),
        optim=OptimConfig(
            name="adamw",
            lr_per_256=6e-3,
            weight_decay=0.05,
            global_batch_size=128,
            warmup_share=0.03,
        ),
        run=RunConfig(max_steps=1500),
        probe_scenes=400,
    ),
    "mocov3_r50": ContrastConfig(),
    "mocov3_r50_1000ep": ContrastConfig(
        method=ContrastMethodConfig(momentum=0.996),
        optim=OptimConfig(lr_per_256=0.3, weight_decay=1.5e-6, epochs=1000, warmup_share=0.01),
    ),
}
"""quickstart_teacher: the teacher included in the package.

mocov3_r50 and mocov3_r50_1000ep: 100 and 1000 epochs with MoCo v3's learning rate for 256 images,
weight decay and momentum for each (github.com/facebookresearch/moco-v3, CONFIG.md), at a global
batch of 1024 instead of 4096.
"""
