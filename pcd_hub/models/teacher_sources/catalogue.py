"""Recommended teachers: timm names with their size, cost and licence."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm

IMAGE_SIZE = 224
"""Height and width in pixels at which GMAC and grids are stated."""

_STUDENT_GMAC = 1.814  # ResNet-18 without its classifier, at 224 px
_STUDENT_STEP = 3 * _STUDENT_GMAC  # the backward pass costs about two forward passes
_SMALLEST_GRID = {"cnn": 4, "vit": 7}


@dataclass(frozen=True, kw_only=True)
class RecommendedTeacher:
    """A pretrained timm model that makes a good teacher."""

    name: str
    """Name in timm, with its tag; the teacher's source is ``timm:NAME``."""
    kind: str
    """cnn or vit."""
    parameters: float
    """Parameters without a classifier, in millions."""
    gmac: float
    """Multiplications of one forward pass at 224 px, in 10^9."""
    stride: int
    """Pixels per location of the feature map."""
    channels: int
    license: str
    """As stated by timm."""
    advice: str
    """When to take it."""

    @property
    def source(self) -> str:
        """The value of ``--teacher.source``."""
        return f"timm:{self.name}"

    @property
    def cost(self) -> float:
        """Computed cost, relative to training a ResNet-18 on the same images.

        One forward pass of the teacher against three of the student: forward, and a backward pass
        of twice the cost.
        """
        return self.gmac / _STUDENT_STEP

    @property
    def grid(self) -> int:
        """Height and width of the feature map at 224 px."""
        return IMAGE_SIZE // self.stride

    @property
    def smallest_image_size(self) -> int:
        """Smallest sensible image size: a grid of 4 x 4 locations for CNNs, 7 x 7 for ViTs."""
        return _SMALLEST_GRID[self.kind] * self.stride

    @property
    def is_in_timm(self) -> bool:
        """Whether the installed timm knows these weights."""
        return timm.is_model_pretrained(self.name)


_dinov2 = partial(RecommendedTeacher, kind="vit", stride=14, license="apache-2.0")
_dinov3 = partial(RecommendedTeacher, kind="vit", stride=16, license="dinov3-license")
_siglip2 = partial(RecommendedTeacher, kind="vit", stride=16, license="apache-2.0")
_cnn = partial(RecommendedTeacher, kind="cnn", stride=32)

TEACHERS: tuple[RecommendedTeacher, ...] = (
    _dinov2(
        name="vit_small_patch14_reg4_dinov2.lvd142m",
        parameters=21.63,
        gmac=6.228,
        channels=384,
        advice="the default: dense features, permissive licence",
    ),
    _dinov2(
        name="vit_base_patch14_reg4_dinov2.lvd142m",
        parameters=85.73,
        gmac=23.539,
        channels=768,
        advice="the default on a GPU",
    ),
    _dinov2(
        name="vit_large_patch14_reg4_dinov2.lvd142m",
        parameters=303.23,
        gmac=82.322,
        channels=1024,
        advice="several GPUs, or a long run",
    ),
    _dinov2(
        name="vit_small_patch14_dinov2.lvd142m",
        parameters=21.63,
        gmac=6.124,
        channels=384,
        advice="without register tokens, to compare with published results",
    ),
    _dinov2(
        name="vit_base_patch14_dinov2.lvd142m",
        parameters=85.72,
        gmac=23.161,
        channels=768,
        advice="the same, on a GPU",
    ),
    _dinov2(
        name="vit_large_patch14_dinov2.lvd142m",
        parameters=303.23,
        gmac=81.012,
        channels=1024,
        advice="the same, on several GPUs",
    ),
    _dinov3(
        name="vit_small_patch16_dinov3.lvd1689m",
        parameters=21.59,
        gmac=4.698,
        channels=384,
        advice="newer than DINOv2 and cheaper, if its licence suits you",
    ),
    _dinov3(
        name="vit_base_patch16_dinov3.lvd1689m",
        parameters=85.64,
        gmac=17.932,
        channels=768,
        advice="the same, on a GPU",
    ),
    _dinov3(
        name="vit_large_patch16_dinov3.lvd1689m",
        parameters=303.08,
        gmac=62.84,
        channels=1024,
        advice="the same, on several GPUs",
    ),
    _cnn(
        name="convnext_tiny.dinov3_lvd1689m",
        parameters=27.82,
        gmac=4.455,
        channels=768,
        license="dinov3-license",
        advice="DINOv3 with the stride of a CNN student: nothing is resampled",
    ),
    _cnn(
        name="convnext_small.dinov3_lvd1689m",
        parameters=49.45,
        gmac=8.683,
        channels=768,
        license="dinov3-license",
        advice="the same, on a GPU",
    ),
    _siglip2(
        name="vit_base_patch16_siglip_256.v2_webli",
        parameters=92.88,
        gmac=17.471,
        channels=768,
        advice="trained with captions: objects, scenes, products",
    ),
    _siglip2(
        name="vit_large_patch16_siglip_256.v2_webli",
        parameters=315.89,
        gmac=61.232,
        channels=1024,
        advice="the same, on several GPUs",
    ),
    _cnn(
        name="convnext_tiny.fb_in22k",
        parameters=27.82,
        gmac=4.455,
        channels=768,
        license="apache-2.0",
        advice="photographs of objects; supervised with 22,000 classes",
    ),
    _cnn(
        name="convnext_small.fb_in22k",
        parameters=49.45,
        gmac=8.683,
        channels=768,
        license="apache-2.0",
        advice="the same, on a GPU",
    ),
    _cnn(
        name="convnext_base.fb_in22k",
        parameters=87.57,
        gmac=15.354,
        channels=1024,
        license="apache-2.0",
        advice="the same, on a GPU, in a long run",
    ),
    _cnn(
        name="resnet50.a1_in1k",
        parameters=23.51,
        gmac=4.087,
        channels=2048,
        license="apache-2.0",
        advice="a baseline for other teachers",
    ),
    _cnn(
        name="tf_efficientnet_lite0.in1k",
        parameters=3.37,
        gmac=0.384,
        channels=1280,
        license="apache-2.0",
        advice="a CPU, or an hour: nearly all the time goes to the student",
    ),
)
"""Recommended teachers, by family. Parameters and GMAC were counted on the meta device."""


def find(source: str) -> RecommendedTeacher | None:
    """Return the recommended teacher of a source such as ``timm:NAME``; None for others."""
    return next((teacher for teacher in TEACHERS if teacher.source == source), None)


def facts(teacher: RecommendedTeacher) -> dict[str, Any]:
    """Return all facts as JSON values."""
    return dataclasses.asdict(teacher) | {
        "source": teacher.source,
        "grid": teacher.grid,
        "cost": round(teacher.cost, 2),
        "smallest_image_size": teacher.smallest_image_size,
        "is_in_timm": teacher.is_in_timm,
    }


_HEADINGS = ("NAME", "M PARAMETERS", "GMAC", "COST", "STRIDE", "GRID", "FROM PX", "LICENCE", "WHEN")

COLUMNS = f"""\
M PARAMETERS  millions, without a classifier
GMAC          10^9 multiplications of one forward pass at {IMAGE_SIZE} px, counted
COST          computed: GMAC / {_STUDENT_STEP:.2f}, a training step of ResNet-18 on the same images
STRIDE, GRID  pixels per location of the feature map, and its size at {IMAGE_SIZE} px
FROM PX       smallest sensible --teacher.image-size: a 4 x 4 grid for CNNs, 7 x 7 for ViTs
LICENCE       as stated by timm; dinov3-license is Meta's own, read it before publishing a student
"""
"""Meaning of the columns."""

_USAGE = """
pcd-hub distill --teacher.source timm:NAME     (auto: the first of a list that is reachable)"""


def rows() -> list[tuple[str, ...]]:
    """Return the headings, and a row of text for each recommended teacher."""
    return [_HEADINGS, *map(_row, TEACHERS)]


def _row(teacher: RecommendedTeacher) -> tuple[str, ...]:
    return (
        teacher.name,
        f"{teacher.parameters:.1f}",
        f"{teacher.gmac:.1f}",
        f"{teacher.cost:.2f}",
        f"{teacher.stride}",
        f"{teacher.grid} x {teacher.grid}",
        f"{teacher.smallest_image_size}",
        teacher.license,
        teacher.advice,
    )


def as_text() -> str:
    """Return the table for a terminal, marking teachers that the installed timm lacks."""
    table = rows()
    *widths, _ = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)), advice])
        for *cells, advice in table
    ]
    for number, teacher in enumerate(TEACHERS, start=1):
        if not teacher.is_in_timm:
            lines[number] += f" (not in timm {timm.__version__})"
    return "\n".join((*lines, "", COLUMNS + _USAGE))


def as_markdown() -> str:
    """Return the table for ``recipes/teachers.md``."""
    lines = ["| " + " | ".join(row) + " |" for row in rows()]
    return "\n".join((lines[0], "|" + "---|" * len(_HEADINGS), *lines[1:]))
