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
    LabelShare,
    Positive,
    Share,
    Workers,
    as_typed,
)
from pcd_hub.train.configs.finetune import FinetuneRunConfig, SGDConfig


@dataclass(frozen=True, kw_only=True)
class CocoDataConfig:
    """Images and boxes in a format of annotation tools (docs/labels.md)."""

    source: Path | None = None
    """Folder with labels and images. coco: annotations/instances_SPLIT.json,
    and the images in images/SPLIT or SPLIT. The layouts of the other
    formats: docs/labels.md."""
    format: Literal["auto", "coco", "yolo", "voc", "labelme", "cvat"] = "auto"
    """Format of the labels. auto: recognised by the files in the folder."""
    check: bool = False
    """Print what the labels and images contain (counts by class, images
    without objects, boxes outside, images in both splits ...), and exit."""
    train_split: str = "train"
    """Name of the split to train on; COCO's own is train2017."""
    test_split: str = "val"
    """Name of the split to evaluate on; COCO's own is val2017."""
    train_images: Path | None = None
    """Folder of the training images, if it is not where --data.source has it."""
    train_annotations: Path | None = None
    """Annotation file of the training split, or folder of its label files,
    if it is not where --data.source has it."""
    test_images: Path | None = None
    """Folder of the test images, if it is not where --data.source has it."""
    test_annotations: Path | None = None
    """Annotation file of the test split, or folder of its label files, if it
    is not where --data.source has it."""
    bad_annotations: Literal["error", "drop"] = "error"
    """Action on a box without area or outside its image, a malformed mask,
    and a line or shape that is no box or polygon. drop: leave such
    annotations out of both splits and log their number; COCO's train2017
    has a few."""
    group_by_orientation: bool = False
    """Fill each batch with images that are all landscape or all portrait, as detectron2 does."""
    voc_scores: bool = False
    """Also report Pascal VOC's AP50, with 11 points of recall (2007) and
    with all (2010). VOC's skips objects marked difficult or ignore, which
    COCO's counts."""
    train_share: LabelShare = 1.0
    """Share of the training images with objects to use, drawn with
    --run.seed; at the same seed a smaller share is part of a larger one."""
    num_workers: Workers | None = None
    """Loader processes per training process. None: 1 on a CPU, up to 16 with a GPU."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The detector on the backbone."""

    kind: Literal["fpn", "c4"] = "fpn"
    """fpn: a feature pyramid of strides 4 to 64. c4: one feature map of
    stride 16, with the last stage as the box head."""
    masks: Literal["auto", "yes", "no"] = "auto"
    """Mask R-CNN (yes) or Faster R-CNN (no). auto: yes if the annotations have masks."""
    norm: Literal["sync", "batch", "frozen"] = "sync"
    """BatchNorm of the backbone. sync: trained, with statistics over all
    processes (GPUs only); the usual protocol for backbones trained
    without labels. batch: trained, with each process's own statistics.
    frozen: weights and statistics are fixed. With sync and batch, the
    pyramid or the C4 head has BatchNorm too."""
    frozen_stages: Annotated[int, Bounds(int, 0, 9)] = 0
    """Number of first stages to freeze: 1 is the stem, 2 the stem and stride
    4 (detectron2's default). 0 trains everything, as a comparison with
    random weights needs."""
    short_sides: tuple[ImageSide, ...] = (640, 672, 704, 736, 768, 800)
    """Lengths in pixels of an image's shorter side: a random one in
    training, the last in evaluation."""
    max_long_side: ImageSide = 1333
    """Largest length in pixels of the longer side; it takes precedence over short-sides."""
    channels: Channels = 256
    """For fpn: channels of the pyramid and the mask head."""
    train_proposals: Count = 1000
    """Proposals per image in training."""
    test_proposals: Count = 1000
    """Proposals per image in evaluation."""
    head_samples: Count = 512
    """Regions per image to train the head on, at most a quarter of them objects."""
    precise_bn_batches: CountOrZero = 0
    """Training batches for computing BatchNorm statistics before the
    evaluation (PreciseBN); 0 keeps the running averages. detectron2 uses
    200 with C4. The sampled regions depend on the number of processes."""

    def validate(self, group: str) -> None:
        """Reject sizes that contradict each other."""
        if not self.short_sides or max(self.short_sides) > self.max_long_side:
            raise ConfigError(
                f"{group}short-sides {as_typed(self.short_sides)}".rstrip()
                + ": expected one or more, at most "
                f"{group}max-long-side {self.max_long_side}"
            )


@dataclass(frozen=True, kw_only=True)
class DetectionOptimConfig(SGDConfig):
    """SGD and its schedule, stated for a reference batch size.

    With a global batch size of B the learning rate is multiplied by B / reference-batch-size and
    all counts of iterations are divided by it, so that training sees the same number of images.
    """

    lr: Positive = 0.02
    """Peak learning rate at the reference batch size."""
    iterations: Count = 90_000
    """Number of steps at the reference batch size."""
    lr_drops: tuple[Count, ...] = (60_000, 80_000)
    """Iterations after which the learning rate is divided by 10."""
    warmup_iterations: CountOrZero = 1000
    """Iterations of linear warm-up."""
    warmup_factor: Share = 0.001
    """Learning rate of the first step, as a share of the peak."""


@dataclass(frozen=True, kw_only=True)
class DetectRunConfig(FinetuneRunConfig):
    """Output folder, length, seed and logging. Only seed and max-steps change the result."""

    checkpoint_every_steps: Count = 2500
    """Steps between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """Fine-tune a backbone as Faster or Mask R-CNN for object detection."""

    model: str = "resnet18.pcd"
    """Backbone: resnet18.pcd, random:ARCH, teacher:SOURCE, local-dir:DIR,
    hf-hub:ORG/NAME, or any timm model name."""
    data: CocoDataConfig = field(default_factory=CocoDataConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    optim: DetectionOptimConfig = field(default_factory=DetectionOptimConfig)
    run: DetectRunConfig = field(default_factory=DetectRunConfig)


_COCO = CocoDataConfig(
    train_split="train2017", test_split="val2017", bad_annotations="drop", group_by_orientation=True
)
_C4 = DetectorConfig(kind="c4", train_proposals=2000, precise_bn_batches=200)
_2X = DetectionOptimConfig(iterations=180_000, lr_drops=(120_000, 160_000))

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
        optim=DetectionOptimConfig(
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
        optim=DetectionOptimConfig(
            iterations=24_000, lr_drops=(18_000, 22_000), warmup_iterations=100
        ),
    ),
}
"""small: takes minutes on a CPU.

coco_*: Mask R-CNN, 1x and 2x. voc_r18_c4_24k: Faster R-CNN on Pascal VOC 07+12 in COCO's format,
scored as COCO does and by VOC's own rules.
"""
