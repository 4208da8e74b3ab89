"""The parts of a teacher, as read from its source."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from pcd_hub.errors import TeacherError, nearest
from pcd_hub.image_size import ImageSize
from pcd_hub.models.tensor_files import State

_MAX_VALUE = 1000.0

Numbers = Sequence[float | int]
"""One value for each channel."""


@dataclass(frozen=True, kw_only=True)
class TeacherParts:
    """The parts of a teacher."""

    model: nn.Module
    head: nn.Sequential | None = None
    """The trained vector head, before its conversion to a pixel head."""
    license: str = "not stated"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    is_normalisation_stated: bool = True
    """Whether the source, or the release that its layout belongs to, states mean and std."""
    is_normalisation_given: bool = False
    """Whether the user gives mean and std."""
    origin: dict[str, str] = field(default_factory=dict)
    training_size: ImageSize | None = None
    """Size in pixels of the images it was trained on, if its source states it."""
    warnings: tuple[str, ...] = ()
    """What may be wrong with it, each in one line."""


def with_normalisation(
    parts: TeacherParts,
    source: str,
    *,
    mean: Numbers | None,
    std: Numbers | None,
) -> TeacherParts:
    """Replace mean and std of the source by those given, if any.

    Raises:
        TeacherError: If only one is given, or they are not three sensible numbers.
    """
    if mean is None and std is None:
        return parts
    if mean is None or std is None:
        given, other = ("std", "mean") if mean is None else ("mean", "std")
        raise TeacherError(f"{source}: {given} without {other}; expected both or neither")
    check_normalisation(mean, std, source)
    return replace(
        parts,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        is_normalisation_stated=True,
        is_normalisation_given=True,
    )


def check_normalisation(mean: Numbers, std: Numbers, source: str) -> None:
    """Raise a TeacherError if mean or std is not three numbers, for images in [0, 1]."""
    for name, given, low in (("mean", mean, -_MAX_VALUE), ("std", std, 0)):
        values = tuple(given) if isinstance(given, Iterable) else (given,)
        if len(values) != 3 or not all(low < value <= _MAX_VALUE for value in values):
            bound = f"three numbers > {low:g} and <= {_MAX_VALUE:g}, one for each channel"
            raise TeacherError(f"{source}: {name} is {values}, expected {bound}")
    if min(mean) > 1:
        raise TeacherError(
            f"{source}: mean {tuple(mean)} and std {tuple(std)} are of images from 0 to 255, "
            f"expected those from 0 to 1: {_divided(mean)} and {_divided(std)}"
        )


def _divided(values: Numbers) -> tuple[float, ...]:
    return tuple(round(value / 255, 4) for value in values)


def check_architecture(architecture: str, source: str) -> None:
    """Raise a TeacherError if the installed timm has no such architecture."""
    if not timm.is_model(architecture):
        raise TeacherError(
            f"{source}: timm has no architecture '{architecture}'"
            f"{nearest(architecture, timm.list_models())}"
        )


def build_model(
    architecture: str, state: State, source: str, image_size: ImageSize | None, **arguments: Any
) -> nn.Module:
    """Build a timm model with exactly these weights; a fixed input size becomes ``image_size``.

    Args:
        architecture: Name in timm.
        state: The weights, with timm's keys.
        source: The teacher's source, for error messages.
        image_size: Size of its images in pixels.
        **arguments: Arguments of ``timm.create_model`` besides the architecture's own.

    Raises:
        TeacherError: If timm has no such architecture, or its weights are others.
    """
    check_architecture(architecture, source)
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    expected = model.state_dict()
    # Old torchvision files lack these counters, which are not used in eval mode.
    counters = {key: value for key, value in expected.items() if key.endswith("batches_tracked")}
    state = counters | state
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise TeacherError(
            f"{source} does not fit {architecture}: "
            f"{len(missing)} keys missing ({', '.join(missing[:3])}), "
            f"{len(extra)} unknown ({', '.join(extra[:3])}); is it another architecture or layout?"
        )
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise TeacherError(
            f"{source} does not fit {architecture}: {str(error).splitlines()[-1].strip()}"
        ) from error
    if image_size and has_fixed_size(model.pretrained_cfg) and hasattr(model, "set_input_size"):
        with contextlib.suppress(AssertionError, ValueError):  # pixel_grid will report it
            model.set_input_size(img_size=image_size)  # pyright: ignore[reportCallIssue]
    return model


def has_fixed_size(pretrained_cfg: Any) -> bool:
    """Return whether timm builds the model for one input size, such as most ViTs."""
    return bool(pretrained_cfg.get("fixed_input_size"))
