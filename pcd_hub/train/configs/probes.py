"""Configurations of the recipes for frozen backbones: linear_seg, knn, look and compare."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pcd_hub.train.configs.fields import (
    Bounds,
    Count,
    ImageSide,
    NotNegative,
    Positive,
    Seed,
    Workers,
)
from pcd_hub.train.configs.labelled import ClassificationDataConfig, SegmentationSetConfig

MODELS = ("random:resnet18", "resnet18.pcd", "teacher:quickstart")


@dataclass(frozen=True, kw_only=True)
class ResultsConfig:
    """Output folder and seeds."""

    output_dir: Path | None = None
    """Folder of the results. None: runs/RECIPE, with a number appended if that exists."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of the random weights and of the probe's batches; one result for each."""


@dataclass(frozen=True, kw_only=True)
class TeacherSourceConfig:
    """The teacher to compare with."""

    source: str = "quickstart"
    """Teacher: quickstart (in the package), timm:NAME,
    hf-hub:ORG/NAME[@REVISION], local-dir:DIR, mocov3_r50:FILE,
    mocov3:ARCH:FILE, resnet:ARCH:FILE ..."""


@dataclass(frozen=True, kw_only=True)
class SegmentationDataConfig(SegmentationSetConfig):
    """Images with a class label for every pixel."""

    image_size: ImageSide = 192
    """Height and width in pixels to which images are resized, without
    keeping their aspect ratio; predictions are evaluated at the size of
    the labels."""
    num_workers: Workers | None = None
    """Loader processes. None: 1 on a CPU, up to 16 with a GPU."""


@dataclass(frozen=True, kw_only=True)
class SegmentationProbeConfig:
    """The probe: BatchNorm and a 1x1 convolution, trained with AdamW on frozen feature maps."""

    num_stages: Annotated[int, Bounds(int, 1, 9)] = 3
    """Number of last stages to concatenate, at the resolution of the finest."""
    steps: Count = 400
    """Training steps."""
    batch_size: Count = 32
    """Images per step."""
    lr: Positive = 3e-3
    """Peak learning rate; it follows half a cosine to 0."""
    weight_decay: NotNegative = 1e-3
    """Weight decay."""
    label_stride: Annotated[int, Bounds(int, 1, 8)] = 4
    """Stride in pixels at which a step's loss samples the labels, from a random offset."""
    keep_gigabytes: Annotated[float, Bounds(float, 0, 10**6)] = 4.0
    """Largest size of the feature maps of one split to keep in memory;
    larger ones are computed again at every step."""


@dataclass(frozen=True, kw_only=True)
class LinearSegConfig:
    """Linear segmentation probe of frozen backbones."""

    models: tuple[str, ...] = MODELS
    """Backbones to evaluate: resnet18.pcd, random:ARCH, teacher:SOURCE,
    local-dir:DIR, hf-hub:ORG/NAME, or any timm model name."""
    references: bool = False
    """Also evaluate published backbones to compare with: resnet18.a1_in1k,
    resnet18.fb_ssl_yfcc100m_ft_in1k and convnext_tiny.dinov3_lvd1689m.
    Those that cannot be downloaded are named and left out."""
    append: Path | None = None
    """Append every result to this file, NAME.jsonl, which pcd-hub compare
    reads."""
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
"""folder: takes minutes on a CPU for a few hundred images.

ade20k, voc, cityscapes: the official downloads; the numbers of steps are not tuned.
"""


@dataclass(frozen=True, kw_only=True)
class LabelFreeConfig:
    """The comparison with a teacher, which needs no labels."""

    source: str = ""
    """Images, with or without labels: a folder, a .txt file with one path a
    line, scenes:[COUNT[:SEED]], hf-disk:DIR or hf:ORG/NAME. Default: the
    test split of --data.source."""
    num_images: Annotated[int, Bounds(int, 2, 10**9)] = 200
    """Number of images to draw from it."""
    retrieval_k: Count = 5
    """Count a pixel as retrieved if the teacher's nearest is among the model's k nearest."""


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """Evaluate frozen backbones on whole images: k-NN, linear classifier, agreement with a teacher.

    The first two need --data.source.
    """

    models: tuple[str, ...] = MODELS
    """Backbones to evaluate: resnet18.pcd, random:ARCH, teacher:SOURCE,
    local-dir:DIR, hf-hub:ORG/NAME, or any timm model name."""
    references: bool = False
    """Also evaluate published backbones to compare with: resnet18.a1_in1k,
    resnet18.fb_ssl_yfcc100m_ft_in1k and convnext_tiny.dinov3_lvd1689m.
    Those that cannot be downloaded are named and left out."""
    append: Path | None = None
    """Append every result to this file, NAME.jsonl, which pcd-hub compare
    reads."""
    data: ClassificationDataConfig = field(default_factory=ClassificationDataConfig)
    teacher: TeacherSourceConfig = field(default_factory=TeacherSourceConfig)
    report: LabelFreeConfig = field(default_factory=LabelFreeConfig)
    k: Count = 20
    """Number of neighbours that vote."""
    temperature: Positive = 0.07
    """Temperature of the neighbours' weights, exp(cosine / temperature)."""
    penalty: NotNegative = 1e-3
    """L2 penalty of the linear classifier."""
    run: ResultsConfig = field(default_factory=ResultsConfig)


KNN: dict[str, KnnConfig] = {
    "folder": KnnConfig(),
    "imagenet": KnnConfig(data=ClassificationDataConfig(source="imagenet")),
}
"""folder: the images of --data.source. imagenet: a folder with train/ and val/, 224 px."""


@dataclass(frozen=True, kw_only=True)
class LookDataConfig:
    """Images to draw."""

    source: str = "scenes:8:1000002"
    """Images: a folder, a .txt file with one path a line,
    scenes:[COUNT[:SEED]], hf-disk:DIR or hf:ORG/NAME."""
    image_size: ImageSide = 192
    """Height and width in pixels of the centre crops."""
    num_images: Count = 8
    """Number of images."""


@dataclass(frozen=True, kw_only=True)
class LookRunConfig:
    """Output folder and seed."""

    output_dir: Path | None = None
    """Folder of the pictures. None: runs/look, with a number appended if that exists."""
    seed: Seed = 0
    """Seed of random weights."""


@dataclass(frozen=True, kw_only=True)
class LookConfig:
    """Draw feature maps as colours, and effective receptive fields."""

    models: tuple[str, ...] = ("random:resnet18", "resnet18.pcd")
    """Backbones to draw: resnet18.pcd, random:ARCH, teacher:SOURCE,
    local-dir:DIR, hf-hub:ORG/NAME, or any timm model name."""
    data: LookDataConfig = field(default_factory=LookDataConfig)
    teacher: TeacherSourceConfig = field(default_factory=TeacherSourceConfig)
    run: LookRunConfig = field(default_factory=LookRunConfig)


LOOK: dict[str, LookConfig] = {"quickstart": LookConfig()}
"""quickstart: random and shipped ResNet-18 and the quickstart's teacher, on generated scenes."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Output in addition to the terminal."""

    output_dir: Path | None = None
    """Write comparison.md and comparison.json into this folder."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Join the tables of evaluations; add them to a weight's record."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders that contain evaluations, at any depth, and results files (NAME.jsonl)."""
    run: ComparisonConfig = field(default_factory=ComparisonConfig)
    into: str | None = None
    """Add the tables to the record and card of this weight: a name in the
    local store, or the folder of an export."""
