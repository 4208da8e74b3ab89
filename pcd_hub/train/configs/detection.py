"""Named configurations of ``recipes/detect.py``.

The COCO schedules are detectron2's. VOC's is the protocol of MoCo (arXiv:1911.05722): 24k
iterations, drops after 18k and 22k, warm-up 100, short sides 480 to 800.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.fields import (
    Bounds,
    Channels,
    Count,
    CountOrZero,
    ImageSide,
    NotNegative,
    Positive,
    Share,
    Workers,
    as_typed,
)
from pcd_hub.train.configs.finetune import FinetuneRunConfig, SGDScheduleConfig


@dataclass(frozen=True, kw_only=True)
class CocoDataConfig:
    """Pictures and boxes in COCO's format."""

    source: Path | None = None
    """Folder with annotations/instances_SPLIT.json, and the pictures in images/SPLIT or SPLIT."""
    train_split: str = "train"
    """Name of the training split; COCO's own is train2017."""
    test_split: str = "val"
    """Name of the held-out split; COCO's own is val2017."""
    train_images: Path | None = None
    """Folder of the training pictures, if not in the layout of source."""
    train_annotations: Path | None = None
    """The json of the training split, if not in the layout of source."""
    test_images: Path | None = None
    """Folder of the held-out pictures, if not in the layout of source."""
    test_annotations: Path | None = None
    """The json of the held-out split, if not in the layout of source."""
    bad_annotations: Literal["error", "drop"] = "error"
    """What becomes of a box without size or outside its picture, and of a malformed mask.

    drop: such annotations are left out of both splits, and it is said how many. COCO's own
    train2017 has a few boxes without height.
    """
    group_by_orientation: bool = False
    """Whether a training step's images are all wider than tall, or all not, as in detectron2."""
    voc_scores: bool = False
    """Score boxes by Pascal VOC's rules too: AP50 at 11 points of recall (2007), and at all (2010).

    Objects marked ``difficult`` or ``ignore`` then count neither way. COCO's scores count them.
    """
    num_workers: Workers | None = None
    """Processes that read pictures, per training process. Default: 1 on CPU, else up to 16."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What is built on the backbone."""

    kind: Literal["fpn", "c4"] = "fpn"
    """fpn: a pyramid of strides 4 to 64. c4: one map of stride 16, the last stage as head."""
    masks: Literal["auto", "yes", "no"] = "auto"
    """Mask R-CNN or Faster R-CNN. auto: masks if the annotations have them."""
    norm: Literal["sync", "batch", "frozen"] = "sync"
    """The backbone's batch norm.

    sync: trained, statistics over all processes (GPUs only; the usual protocol for backbones
    trained without labels, whose activations have no common scale). batch: trained, each process
    its own. frozen: statistics and weights stay the backbone's. If trained, the pyramid or the C4
    head gets batch norm too.
    """
    frozen_stages: Annotated[int, Bounds(int, 0, 9)] = 0
    """How many stages never change: 1 is the stem, 2 the stem and stride 4, as in detectron2.

    The default trains everything, as the protocol for backbones without labels does, and as a
    comparison with a random start needs.
    """
    short_sides: tuple[ImageSide, ...] = (640, 672, 704, 736, 768, 800)
    """Pixels of the shorter side; drawn for each picture in training, the last in the test."""
    max_long_side: ImageSide = 1333
    """Bound on the longer side in pixels; wins over the shorter."""
    channels: Channels = 256
    """Of the pyramid and its mask head; fpn only."""
    train_proposals: Count = 1000
    """Regions an image that the proposal network hands on in training."""
    test_proposals: Count = 1000
    """The same in the test."""
    head_samples: Count = 512
    """Regions an image on which the head is trained, at most a quarter of them objects."""
    precise_bn_batches: CountOrZero = 0
    """Training batches on which batch norm takes its statistics anew before the test (PreciseBN).

    0: it keeps its running averages. 200 is detectron2's number, used with C4. Which regions are
    sampled depends on the number of processes.
    """

    def check(self, group: str) -> None:
        """Refuse sizes that contradict each other."""
        if not self.short_sides or max(self.short_sides) > self.max_long_side:
            raise ConfigError(
                f"{group}short-sides {as_typed(self.short_sides)}".rstrip()
                + ": give one or more, none above "
                f"{group}max-long-side {self.max_long_side}"
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(SGDScheduleConfig):
    """Steps and learning rate, stated for ``reference_batch_size``.

    With another ``global_batch_size`` B the learning rate is multiplied by B / reference and every
    count of iterations by reference / B, so the number of pictures seen stays the same.
    """

    lr: Positive = 0.02
    """Peak learning rate."""
    iterations: Count = 90_000
    lr_drops: tuple[Count, ...] = (60_000, 80_000)
    """Iterations after which the learning rate is a tenth."""
    warmup_iterations: CountOrZero = 1000
    """In which the learning rate rises linearly."""
    warmup_factor: Share = 0.001
    """Share of the peak learning rate at the first step."""
    weight_decay: NotNegative = 1e-4
    """On everything but batch norm."""


@dataclass(frozen=True, kw_only=True)
class DetectRunConfig(FinetuneRunConfig):
    """Where and how long. Except for seed and max_steps, nothing here changes the result."""

    max_steps: Count | None = None
    """Squeeze the whole schedule, drops and warm-up with it, into so many steps."""
    checkpoint_every_steps: Count = 2500


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """recipes/detect.py."""

    model: str = "resnet18.pcd"
    """The backbone, as recipes/models_under_test.py lists: resnet18.pcd, random:resnet18 ..."""
    data: CocoDataConfig = field(default_factory=CocoDataConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    optim: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: DetectRunConfig = field(default_factory=DetectRunConfig)


_COCO = CocoDataConfig(
    train_split="train2017", test_split="val2017", bad_annotations="drop", group_by_orientation=True
)
_C4 = DetectorConfig(kind="c4", train_proposals=2000, precise_bn_batches=200)
_2X = ScheduleConfig(iterations=180_000, lr_drops=(120_000, 160_000))

DETECT: dict[str, DetectConfig] = {
    "small": DetectConfig(
        detector=DetectorConfig(
            norm="batch",
            short_sides=(160, 176, 192),
            max_long_side=320,
            channels=64,
            train_proposals=200,
            test_proposals=100,
            head_samples=64,
        ),
        optim=ScheduleConfig(
            reference_batch_size=4,
            global_batch_size=4,
            iterations=300,
            lr_drops=(200, 267),
            warmup_iterations=30,
        ),
        run=DetectRunConfig(log_every_steps=10, checkpoint_every_steps=150),
    ),
    "coco_r18_fpn_1x": DetectConfig(data=_COCO),
    "coco_r18_fpn_2x": DetectConfig(data=_COCO, optim=_2X),
    "coco_r18_c4_1x": DetectConfig(data=_COCO, detector=_C4),
    "coco_r18_c4_2x": DetectConfig(data=_COCO, detector=_C4, optim=_2X),
    "voc_r18_c4_24k": DetectConfig(
        data=CocoDataConfig(
            train_split="trainval0712",
            test_split="test2007",
            group_by_orientation=True,
            voc_scores=True,
        ),
        detector=replace(_C4, masks="no", short_sides=tuple(range(480, 801, 32))),
        optim=ScheduleConfig(iterations=24_000, lr_drops=(18_000, 22_000), warmup_iterations=100),
    ),
}
"""small: for a CPU, minutes.

coco_*: Mask R-CNN, 1x and 2x. voc_r18_c4_24k: Faster R-CNN on Pascal VOC 07+12 in COCO's format,
scored as COCO does and by VOC's own rules.
"""
