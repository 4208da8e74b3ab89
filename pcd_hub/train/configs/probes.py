"""Named configurations of the evaluations of frozen backbones: segmentation probe and k-NN."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pcd_hub.train.configs.fields import (
    Bounds,
    Count,
    ImageSide,
    NotNegative,
    Positive,
    Seed,
    Workers,
)

MODELS = ("random:resnet18", "resnet18.pcd", "teacher:quickstart")


@dataclass(frozen=True, kw_only=True)
class SegmentationSetConfig:
    """Images with the class of every pixel, in two splits."""

    source: str = ""
    """Where they come from, as pcd_hub/data/segmentation_sets.py lists.

    A folder with images/SPLIT, masks/SPLIT and classes.json; ade20k:DIR, voc:DIR, cityscapes:DIR;
    hf-disk:DIR or hf:ORG/NAME.
    """
    train_split: str = "train"
    test_split: str = "val"
    image_column: str = "image"
    """Of a Hugging Face dataset, as are the next four."""
    mask_column: str = "mask"
    num_classes: Annotated[int, Bounds(int, 2, 255)] | None = None
    ignore: Annotated[int, Bounds(int, 0, 255)] | None = 255
    """Value of pixels without a label."""
    reduce_zero_label: bool = False
    """0 is no label, and class c is stored as c + 1."""


@dataclass(frozen=True, kw_only=True)
class SegmentationDataConfig(SegmentationSetConfig):
    """Images with the class of every pixel."""

    image_size: ImageSide = 192
    """Height and width in pixels to which images are squashed; scores are taken at label size."""
    num_workers: Workers | None = None
    """Processes that read images. Default: 1 on CPU, else up to 16."""


@dataclass(frozen=True, kw_only=True)
class SegmentationProbeConfig:
    """BatchNorm and a 1x1 convolution, trained on frozen features."""

    num_stages: Annotated[int, Bounds(int, 1, 9)] = 3
    """How many stages from the end are concatenated, on the finest's grid."""
    steps: Count = 400
    batch_size: Count = 32
    lr: Positive = 3e-3
    weight_decay: NotNegative = 1e-3
    label_stride: Annotated[int, Bounds(int, 1, 8)] = 4
    """A step's loss is taken at every so many-th row and column, from a random one on."""
    keep_gigabytes: Annotated[float, Bounds(float, 0, 10**6)] = 4.0
    """Features that take less, of the training and of the test images each, are computed once.

    Else they are computed at every step.
    """


@dataclass(frozen=True, kw_only=True)
class ResultsConfig:
    """Where the results go, and the seeds."""

    output_dir: Path | None = None
    """Default: runs/ and the recipe's name, numbered if taken."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Of the probe's batches, and of a random start."""


@dataclass(frozen=True, kw_only=True)
class TeacherSourceConfig:
    """The teacher that the models are compared with."""

    source: str = "quickstart"
    """As pcd_hub/models/teachers.py lists."""


@dataclass(frozen=True, kw_only=True)
class LinearSegConfig:
    """recipes/linear_seg.py."""

    models: tuple[str, ...] = MODELS
    """Any number, as recipes/models_under_test.py lists."""
    data: SegmentationDataConfig = field(default_factory=SegmentationDataConfig)
    probe: SegmentationProbeConfig = field(default_factory=SegmentationProbeConfig)
    run: ResultsConfig = field(default_factory=ResultsConfig)


LINEAR_SEG: dict[str, LinearSegConfig] = {
    "folder": LinearSegConfig(),
    "ade20k": LinearSegConfig(
        data=SegmentationDataConfig(
            source="ade20k:ADEChallengeData2016",
            train_split="training",
            test_split="validation",
            image_size=512,
        ),
        probe=SegmentationProbeConfig(steps=40_000, batch_size=16, lr=1e-3),
    ),
    "voc": LinearSegConfig(
        data=SegmentationDataConfig(source="voc:VOCdevkit/VOC2012", image_size=512),
        probe=SegmentationProbeConfig(steps=10_000, batch_size=16, lr=1e-3),
    ),
    "cityscapes": LinearSegConfig(
        data=SegmentationDataConfig(source="cityscapes:cityscapes", image_size=768),
        probe=SegmentationProbeConfig(steps=20_000, batch_size=8, lr=1e-3),
    ),
}
"""folder: minutes on a CPU for some hundred images.

ade20k, voc, cityscapes: the official downloads; the step numbers were not tuned.
"""


@dataclass(frozen=True, kw_only=True)
class ClassificationDataConfig:
    """Images with one class each."""

    source: str = ""
    """Where they come from, as pcd_hub/data/classified.py lists: a folder with SPLIT/CLASS/,
    hf-disk:DIR or hf:ORG/NAME."""
    train_split: str = "train"
    test_split: str = "val"
    image_size: ImageSide = 224
    """Height and width in pixels of the centre crop; of the label-free report too."""
    image_column: str = "image"
    """Of a Hugging Face dataset, as is the next."""
    label_column: str = "label"
    num_workers: Workers | None = None
    """Processes that read images. Default: 1 on CPU, else up to 16."""


@dataclass(frozen=True, kw_only=True)
class LabelFreeConfig:
    """The report that needs no labels."""

    source: str = ""
    """Images, as pcd_hub/data/sources.py lists; the labelled test images if not given."""
    num_images: Annotated[int, Bounds(int, 2, 10**9)] = 200
    """How many, drawn once."""
    retrieval_k: Count = 5


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """recipes/knn.py."""

    models: tuple[str, ...] = MODELS
    """Any number, as recipes/models_under_test.py lists."""
    data: ClassificationDataConfig = field(default_factory=ClassificationDataConfig)
    teacher: TeacherSourceConfig = field(default_factory=TeacherSourceConfig)
    report: LabelFreeConfig = field(default_factory=LabelFreeConfig)
    k: Count = 20
    temperature: Positive = 0.07
    penalty: NotNegative = 1e-3
    """Of the linear classifier's squared weights."""
    run: ResultsConfig = field(default_factory=ResultsConfig)


KNN: dict[str, KnnConfig] = {
    "folder": KnnConfig(),
    "imagenet": KnnConfig(data=ClassificationDataConfig(source="imagenet")),
}
"""folder: what --data.source names. imagenet: a folder with train/ and val/, 224 px."""


@dataclass(frozen=True, kw_only=True)
class LookDataConfig:
    """The images to draw."""

    source: str = "scenes:8:1000002"
    """Images, as pcd_hub/data/sources.py lists."""
    image_size: ImageSide = 192
    """Height and width in pixels of the centre crops."""
    num_images: Count = 8


@dataclass(frozen=True, kw_only=True)
class LookRunConfig:
    """Where the pictures go, and the seed."""

    output_dir: Path | None = None
    """Default: runs/look, numbered if taken."""
    seed: Seed = 0
    """Of a random start."""


@dataclass(frozen=True, kw_only=True)
class LookConfig:
    """recipes/look.py."""

    models: tuple[str, ...] = ("random:resnet18", "resnet18.pcd")
    """Any number, as recipes/models_under_test.py lists."""
    data: LookDataConfig = field(default_factory=LookDataConfig)
    teacher: TeacherSourceConfig = field(default_factory=TeacherSourceConfig)
    run: LookRunConfig = field(default_factory=LookRunConfig)


LOOK: dict[str, LookConfig] = {"quickstart": LookConfig()}
"""quickstart: the quickstart's teacher and student on held-out scenes."""
