"""Match a teacher's feature maps to the student's, and its images to what it was trained on."""

import contextlib
import copy
import logging
from collections.abc import Callable

from torch import nn

from pcd_hub.errors import TeacherError, first_line
from pcd_hub.image_size import ImageSize, format_size, height_width, simplest
from pcd_hub.models.grid import PixelGrid
from pcd_hub.models.teacher_sources.agreement import size_warning
from pcd_hub.models.teachers import Teacher, grid_size

log = logging.getLogger("pcd_hub")


def match_teacher(
    teacher: Teacher,
    student: nn.Module,
    *,
    image_size: ImageSize,
    teacher_image_size: ImageSize | str | None = None,
) -> Teacher:
    """Give a loaded teacher's feature maps the student's height and width.

    Args:
        teacher: The teacher.
        student: A network, images ``(B, 3, H, W)`` -> feature maps ``(B, C, h, w)``.
        image_size: Size of the images in pixels.
        teacher_image_size: The size to which the teacher resizes them: None for no change, a
            number for the shorter side, height and width, or ``"match"``
            (``load_matched_teacher``).

    Raises:
        TeacherError: If the teacher does not accept the size.
    """

    def accept(size: ImageSize) -> Teacher:
        try:
            teacher.set_sizes(size)
        except Exception as error:
            raise TeacherError(
                f"{teacher.facts.source} cannot take images of {format_size(size)} px "
                f"({first_line(error)}); use another --teacher.image-size"
            ) from error
        return teacher

    return match_loaded(
        accept, student, image_size=image_size, teacher_image_size=teacher_image_size
    )


def match_loaded(
    load: Callable[[ImageSize], Teacher],
    student: nn.Module,
    *,
    image_size: ImageSize,
    teacher_image_size: ImageSize | str | None,
) -> Teacher:
    """Load a teacher at the size that :func:`match_teacher` describes.

    Args:
        load: Loads the teacher for a size of its images; TeacherError if it does not accept it.
        student: As in :func:`match_teacher`, like the sizes.
        image_size: Size of the images in pixels.
        teacher_image_size: The size to which the teacher resizes them.
    """
    wanted = grid_size(student, image_size)
    size = input_size(image_size, teacher_image_size)
    teacher = load(size)
    own = teacher.grid_size(size)
    if teacher_image_size == "match" and own != wanted:
        sides = zip(height_width(size), wanted, own, strict=True)
        candidate = simplest([round(side * new / old) for side, new, old in sides])
        with contextlib.suppress(TeacherError):  # it may not accept that size
            resized = load(candidate)
            if resized.grid_size(candidate) == wanted:
                teacher, size = resized, candidate
    too_small = size_warning(
        teacher.grid.model,
        image_size=size,
        grid=teacher.grid_size(size),
        training_size=teacher.training_size,
    )
    teacher.warnings += (too_small,) if too_small else ()
    teacher.set_sizes(image_size, input_size=size, grid=wanted)
    log_warnings(teacher)
    return teacher


def match_other_size(
    teacher: Teacher, student: nn.Module, *, image_size: ImageSize, other_size: ImageSize
) -> None:
    """Give a matched teacher feature maps of the student's size for images of another size, too.

    It gets these images in proportion: as many patches, or steps of its stride, as fit best.

    Args:
        teacher: A teacher that is matched for ``image_size``.
        student: A network, images ``(B, 3, H, W)`` -> feature maps ``(B, C, h, w)``.
        image_size: Size of the images in pixels.
        other_size: The other size.

    Raises:
        TeacherError: If the teacher does not accept the size.
    """
    size = _in_proportion(teacher, student, image_size=image_size, other_size=other_size)
    try:
        network = _at_size(teacher.grid, size)
    except Exception as error:
        raise TeacherError(
            f"{teacher.facts.source} cannot take images of {format_size(size)} px "
            f"({first_line(error)}); use another --data.early-image-size"
        ) from error
    wanted = grid_size(student, other_size)
    teacher.add_size(other_size, network=network, input_size=size, grid=wanted)


def _in_proportion(
    teacher: Teacher, student: nn.Module, *, image_size: ImageSize, other_size: ImageSize
) -> ImageSize:
    """Return the teacher's input for images of ``other_size``."""
    full = teacher.input_size or image_size
    if height_width(full) == height_width(image_size):
        return other_size
    own, wanted = grid_size(teacher.grid, full), grid_size(student, image_size)
    cells = zip(grid_size(student, other_size), wanted, strict=True)
    shares = zip(height_width(other_size), height_width(image_size), strict=True)
    sides = []
    for side, count, (new, old), (part, whole) in zip(
        height_width(full), own, cells, shares, strict=True
    ):
        fits = new if count == old else max(1, round(count * part / whole))
        sides.append(round(side * part / whole) if side % count else side // count * fits)
    return simplest(sides)


def _at_size(grid: PixelGrid, image_size: ImageSize) -> PixelGrid:
    """Return the network, or a copy for images of ``image_size`` that shares its weights."""
    try:
        grid_size(grid, image_size)
    except Exception:
        resize = getattr(grid.model, "set_input_size", None)
        if resize is None:
            raise
    else:
        return grid
    shared = {id(parameter): parameter for parameter in grid.parameters()}
    copied = copy.deepcopy(grid, shared)  # resizing replaces the position embeddings
    copied.model.set_input_size(img_size=height_width(image_size))  # pyright: ignore[reportCallIssue]
    grid_size(copied, image_size)
    return copied


def input_size(image_size: ImageSize, requested: ImageSize | str | None) -> ImageSize:
    """Return the requested size; one number is the shorter side of images of ``image_size``."""
    match requested:
        case int():
            sides = height_width(image_size)
            return simplest([round(side * requested / min(sides)) for side in sides])
        case tuple():
            return requested
        case _:
            return image_size


def log_warnings(teacher: Teacher) -> None:
    """Log what may be wrong with the teacher's images, one line each."""
    for warning in teacher.warnings:
        log.warning("%s: %s", teacher.facts.source, warning)
