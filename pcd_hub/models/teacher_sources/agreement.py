"""Whether a teacher gets images like those it was trained on: normalisation and size."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from timm.models import get_arch_pretrained_cfgs
from torch import nn

from pcd_hub.image_size import ImageSize, format_size, height_width
from pcd_hub.models.entries import TAG
from pcd_hub.models.teacher_sources.parts import TeacherParts

_TOLERANCE = 0.005
_SMALLEST_GRID, _SMALLEST_VIT_GRID = 4, 7

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def normalisation_warning(parts: TeacherParts, *, architecture: str) -> str:
    """Return a warning if mean and std are not stated, or unlike timm's; "" otherwise.

    Args:
        parts: The teacher's parts.
        architecture: Its architecture in timm.
    """
    used = parts.mean, parts.std
    known = _known_normalisations(architecture)
    is_unlike = bool(known) and not _is_like(used, known)
    if parts.is_normalisation_given or (parts.is_normalisation_stated and not is_unlike):
        return ""
    if parts.is_normalisation_stated:
        found = f"the teacher's mean and std are {_format(used)}"
    else:
        found = f"the teacher's source states no mean and std, {_format(used)} are used"
    expected = f"; timm's {architecture} has {_format(known[0])}" if is_unlike else ""
    return f"{found}{expected}; --teacher.mean and --teacher.std set others"


def size_warning(
    model: nn.Module,
    *,
    image_size: ImageSize,
    grid: tuple[int, int],
    training_size: ImageSize | None,
) -> str:
    """Return a warning if the images are too small for the teacher; "" otherwise.

    The smallest sensible size is that of a 4 x 4 feature map, 7 x 7 for ViTs, or the teacher's
    training size if that is smaller.

    Args:
        model: The teacher's timm model.
        image_size: Size of its images in pixels.
        grid: Height and width of its feature map for such images.
        training_size: Size it was trained at; default: the input size stated by timm.
    """
    is_vit = hasattr(model, "patch_embed") and hasattr(model, "blocks")
    smallest = _SMALLEST_VIT_GRID if is_vit else _SMALLEST_GRID
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    trained = min(height_width(training_size or cfg.get("input_size", (3, 224, 224))[1:]))
    side = min(height_width(image_size))
    if min(grid) >= smallest or side >= trained:
        return ""
    sensible = min(-(-side * smallest // min(grid)), trained)
    seen = f"images of {format_size(image_size)} px, a {grid[0]} x {grid[1]} feature map"
    return f"the teacher gets {seen}; expected at least {sensible} px (--teacher.image-size)"


def _known_normalisations(architecture: str) -> list[Normalisation]:
    """Return mean and std of all timm weights of an architecture, those of pcd_hub excluded."""
    cfgs = get_arch_pretrained_cfgs(architecture)
    return [
        (tuple(cfg.mean), tuple(cfg.std))
        for name, cfg in cfgs.items()
        if not name.endswith(f".{TAG}")
    ]


def _is_like(used: Normalisation, known: Iterable[Normalisation]) -> bool:
    return any(np.allclose(used, one, atol=_TOLERANCE) for one in known)


def _format(normalisation: Normalisation) -> str:
    return " / ".join(
        f"({', '.join(f'{value:g}' for value in values)})" for values in normalisation
    )
