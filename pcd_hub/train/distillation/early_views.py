"""Smaller views for the first steps of a distillation: their number, and checks of their size."""

import dataclasses
from collections.abc import Callable

from pcd_hub.data.views import EarlyViews
from pcd_hub.errors import ConfigError, StudentError, first_line
from pcd_hub.image_size import ImageSize, format_size, height_width, simplest
from pcd_hub.models.grid import PixelGrid
from pcd_hub.models.teachers import grid_size
from pcd_hub.train.configs.distill import DistillDataConfig
from pcd_hub.train.distillation.state import Distillation


def early_views(data: DistillDataConfig, *, total_steps: int) -> EarlyViews | None:
    """Return the views of the first steps of a run of ``total_steps``; None if all are alike."""
    steps = round(data.early_share * total_steps)
    if data.early_image_size is None or steps == 0:
        return None
    return EarlyViews(image_size=data.early_image_size, steps=steps)


def early_steps(data: DistillDataConfig, *, total_steps: int) -> int:
    """Return the number of steps with smaller views."""
    early = early_views(data, total_steps=total_steps)
    return early.steps if early else 0


def view_sizes(data: DistillDataConfig) -> tuple[ImageSize, ...]:
    """Return the sizes of the views of a run, the early one first."""
    early = () if data.early_image_size is None else (data.early_image_size,)
    return (*early, data.image_size)


def at_one_size(data: DistillDataConfig, size: ImageSize) -> DistillDataConfig:
    """Return the settings with views of ``size`` in all steps."""
    return dataclasses.replace(data, image_size=size, early_image_size=None, early_share=0.0)


def with_final_views(d: Distillation) -> Distillation:
    """Return the distillation without smaller views, whose steps take longest.

    They set the length of a resumed run: most or all of the steps that it adds have these views.
    """
    data = at_one_size(d.config.data, d.config.data.image_size)
    return dataclasses.replace(d, config=dataclasses.replace(d.config, data=data))


def mean_over_steps(data: DistillDataConfig, measure: Callable[[ImageSize], float]) -> float:
    """Return the mean over all steps of a run of what ``measure`` returns for a size of views."""
    final = measure(data.image_size)
    if data.early_image_size is None:
        return final
    return data.early_share * measure(data.early_image_size) + (1 - data.early_share) * final


def resolve_early_views(data: DistillDataConfig) -> DistillDataConfig:
    """Return the settings with the early size in its simplest form.

    Raises:
        ConfigError: If size or share is set without the other, or the size is not smaller than
            ``image_size``.
    """
    size, share, final = data.early_image_size, data.early_share, data.image_size
    if size is None and share == 0:
        return data
    if size is None:
        raise ConfigError(
            f"--data.early-share {share:g} is set without --data.early-image-size; expected a size "
            f"smaller than --data.image-size {_typed(final)}"
        )
    if share == 0:
        raise ConfigError(
            f"--data.early-image-size {_typed(size)} has no effect with --data.early-share 0; "
            "expected a share > 0, or neither"
        )
    sides = [*zip(height_width(size), height_width(final), strict=True)]
    if any(early > late for early, late in sides) or all(early == late for early, late in sides):
        raise ConfigError(
            f"--data.early-image-size {_typed(size)}: expected a size smaller than "
            f"--data.image-size {_typed(final)}"
        )
    return dataclasses.replace(data, early_image_size=simplest(size))


def check_student_takes(student: PixelGrid, data: DistillDataConfig, arch: str) -> None:
    """Check that a student built for ``image_size`` takes the early views, too.

    Raises:
        StudentError: If it does not, as most ViTs, whose position embeddings have one size.
    """
    if data.early_image_size is None:
        return
    try:
        grid_size(student, data.early_image_size)
    except Exception as error:
        raise StudentError(
            f"--data.early-image-size {_typed(data.early_image_size)}: {arch} built for "
            f"{format_size(data.image_size)} px cannot take it ({first_line(error)}); "
            "use --data.early-share 0 --data.early-image-size None"
        ) from error


def _typed(size: ImageSize) -> str:
    return " ".join(map(str, size)) if isinstance(size, tuple) else str(size)
