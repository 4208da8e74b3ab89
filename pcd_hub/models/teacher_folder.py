"""Folder of a converted teacher: ``teacher.safetensors`` (with the head) and ``teacher.json``."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from pcd_hub.errors import TeacherError
from pcd_hub.files.read import read_bounded
from pcd_hub.files.write import atomic_write
from pcd_hub.method.heads import to_pixel_head
from pcd_hub.models.checkpoints import head_from_state
from pcd_hub.models.tensor_files import State, load_tensors, save_tensors

TEACHER_WEIGHTS = "teacher.safetensors"
TEACHER_FACTS = "teacher.json"
_MAX_FACTS_BYTES = 1_000_000


class TeacherFolder(NamedTuple):
    """The content of a teacher's folder."""

    facts: dict[str, Any]
    backbone: State
    """Weights with timm's keys."""
    head: nn.Sequential | None
    """The trained vector head, before its conversion to a pixel head."""


def save_teacher(
    folder: Path, backbone: State, head: nn.Sequential | None, facts: dict[str, Any]
) -> None:
    """Write ``teacher.safetensors`` and ``teacher.json`` into ``folder``.

    The tensors are named ``backbone.*`` and ``head.*``; the head's layers are added to the facts.

    Raises:
        TeacherError: If the head cannot be applied to feature maps; nothing is then written.
        OSError: If the folder cannot be written.
    """
    if head is not None:
        to_pixel_head(head)
    facts = facts | {"head": format_layers(head)}
    tensors = {f"backbone.{key}": value.contiguous() for key, value in backbone.items()}
    if head is not None:
        tensors |= {f"head.{key}": value.contiguous() for key, value in head.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / TEACHER_WEIGHTS)
    atomic_write(folder / TEACHER_FACTS, json.dumps(facts, indent=2) + "\n")


def read_teacher_folder(folder: Path) -> TeacherFolder:
    """Read and check a folder written by :func:`save_teacher`.

    Raises:
        TeacherError: If a file is missing or damaged, or the head differs from ``teacher.json``.
    """
    try:
        facts = read_facts(folder / TEACHER_FACTS)
        tensors = load_tensors(folder / TEACHER_WEIGHTS)
    except TeacherError as error:
        raise TeacherError(f"{folder} is no complete teacher: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise TeacherError(
            f"{folder} is no complete teacher ({type(error).__name__}: {error}); convert it again"
        ) from error
    tensors = {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }
    head_state = _under("head.", tensors)
    head = head_from_state(head_state, folder) if head_state else None
    if (stated := facts.get("head", format_layers(head))) != format_layers(head):
        raise TeacherError(
            f"{folder / TEACHER_FACTS} states the head {stated}, but its weights are those of "
            f"{format_layers(head)}; a head of Linear, BatchNorm1d and ReLU can be applied to "
            "feature maps. Leave the head out to use the backbone's own feature maps"
        )
    return TeacherFolder(facts, _under("backbone.", tensors), head)


def format_layers(head: nn.Sequential | None) -> str:
    """Format the head's layers as "Linear-ReLU-Linear"; "none" if there is no head."""
    return "none" if head is None else "-".join(type(layer).__name__ for layer in head)


def _under(prefix: str, tensors: State) -> State:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def read_facts(file: Path) -> dict[str, Any]:
    """Read and check ``teacher.json``.

    Raises:
        Exception: If it is missing or damaged; the type depends on the cause.
    """
    facts = json.loads(read_bounded(file, _MAX_FACTS_BYTES))
    if not isinstance(facts, dict) or not isinstance(facts["architecture"], str):
        raise TypeError("teacher.json names no architecture")
    if not isinstance(facts.get("license", ""), str):
        raise TypeError("license is not a string")
    for name in ("mean", "std"):
        values = facts.get(name, [1.0] * 3)
        if not isinstance(values, list) or len(values) != 3 or {*map(type, values)} - {int, float}:
            raise ValueError(f"{name} is not three numbers")
        if not all(abs(value) < 1e3 for value in values) or (name == "std" and min(values) <= 0):
            raise ValueError(f"{name} {values} is out of bounds")
    return facts
