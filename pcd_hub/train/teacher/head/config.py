"""Named configurations of ``recipes/fit_head.py``, and its command line."""

import itertools
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pcd_hub.data.multiband.names import RGB
from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.command_line import parse
from pcd_hub.train.configs.fields import Bounds, Channels, HeightWidth, Positive
from pcd_hub.train.configs.pretraining import DataConfig, FrozenTeacherConfig, OptimConfig
from pcd_hub.train.configs.run import RunConfig
from pcd_hub.train.own_images.options import with_long_options


@dataclass(frozen=True, kw_only=True)
class HeadTeacherConfig(FrozenTeacherConfig):
    """The frozen teacher, which has no projection head."""

    source: str = ""
    """Teacher without a projection head: timm:NAME, timm:ARCH[.TAG]:FILE,
    hf-hub:ORG/NAME[@REVISION], local-dir:DIR, resnet:ARCH:FILE ...
    `pcd-hub teachers` lists recommended ones."""
    image_size: HeightWidth | None = None
    """Size in pixels to which views are resized for the teacher: the shorter
    side, or height and width. None: the size of the views. Best as in the
    distillation that follows."""
    cache: str = ""
    """Folder for the teacher's pooled features, which several runs may share;
    `pcd-hub cache --dir` lists and removes them. Empty: the run's folder."""


@dataclass(frozen=True, kw_only=True)
class HeadDataConfig(DataConfig):
    """Images, the held-out ones, and the augmented views drawn from each."""

    view_epochs: Annotated[int, Bounds(int, 1, 64)] = 2
    """Pairs of views of each image. The teacher sees each view once, before
    the training."""
    held_out: Annotated[float, Bounds(float, 0, 0.5, above=True)] = 0.1
    """Share of the images that the head is not trained on, at least 10 and
    at most 2,000 images. They measure it: how often one view of an image finds
    the other."""

    def validate(self, group: str) -> None:
        """Reject other bands than red, green and blue."""
        super().validate(group)
        if self.bands != RGB:
            raise ConfigError(
                f"{group}bands {' '.join(self.bands)}: expected {' '.join(RGB)}, as a teacher "
                "takes RGB images"
            )


@dataclass(frozen=True, kw_only=True)
class HeadMethodConfig:
    """The projection head and its contrastive loss (SimCLR's)."""

    temperature: Positive = 0.1
    """Temperature of the loss."""
    num_layers: Literal[2, 3] = 2
    """Linear layers of the head, as MoCo v3's for ResNets (2) and ViTs (3)."""
    head_width: Channels = 2048
    """Hidden width of the head."""
    dim: Channels = 256
    """Output channels of the head."""


@dataclass(frozen=True, kw_only=True)
class HeadOptimConfig(OptimConfig):
    """Optimizer and schedule."""

    def validate(self, group: str) -> None:
        """Reject batches without negatives, and parts of a batch."""
        if self.global_batch_size < 2:
            raise ConfigError(
                f"{group}global-batch-size {self.global_batch_size}: expected an integer >= 2, as "
                "the loss contrasts the images of a batch"
            )
        if self.accumulation_steps > 1:
            raise ConfigError(
                f"{group}accumulation-steps {self.accumulation_steps}: expected 1, as the loss "
                "contrasts the images of a whole batch"
            )


@dataclass(frozen=True, kw_only=True)
class HeadSpeedConfig:
    """Performance."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision of teacher and head. auto: the launcher's setting, else
    bf16 if the device supports it in hardware, else fp32."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Train a projection head for a frozen teacher without one, by contrast and without labels."""

    teacher: HeadTeacherConfig = field(default_factory=HeadTeacherConfig)
    data: HeadDataConfig = field(
        default_factory=lambda: HeadDataConfig(source=(), min_crop_area=0.2)
    )
    method: HeadMethodConfig = field(default_factory=HeadMethodConfig)
    optim: HeadOptimConfig = field(
        default_factory=lambda: HeadOptimConfig(
            name="adamw",
            lr_per_256=1e-3,
            weight_decay=0.05,
            global_batch_size=512,
            epochs=20,
            warmup_share=0.05,
        )
    )
    speed: HeadSpeedConfig = field(default_factory=HeadSpeedConfig)
    run: RunConfig = field(default_factory=RunConfig)


FIT_HEAD: dict[str, HeadConfig] = {"head": HeadConfig()}
"""head: a head of two layers, in minutes on a CPU."""

_SOURCE = "--data.source"


def parse_fit_head(arguments: list[str]) -> tuple[str, HeadConfig]:
    """Parse ``[CONFIG] [IMAGES ...] [--teacher SOURCE] [--group.field VALUE ...]``.

    Raises:
        ConfigError: If an option is wrong, or there are no images or no teacher.
    """
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    options = with_long_options(arguments[len(words) :])
    name, images = (words[:1], words[1:]) if words and words[0] in FIT_HEAD else ([], words)
    if images:
        if _SOURCE in {option.partition("=")[0] for option in options}:
            raise ConfigError(
                f"images are given twice; name all of them before {_SOURCE}, or there"
            )
        options = [_SOURCE, *images, *options]
    config_name, config = parse(FIT_HEAD, "head", [*name, *options])
    if not any(config.data.source):
        raise ConfigError("no images are given; expected a folder of images: fit_head.py IMAGES")
    if not config.teacher.source.strip():
        raise ConfigError(
            "no teacher is given; expected --teacher SOURCE, such as timm:NAME (pcd-hub teachers)"
        )
    return config_name, config
