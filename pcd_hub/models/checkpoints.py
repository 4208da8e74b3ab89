"""Read self-supervised checkpoints and rename their keys to timm's; unknown keys are errors."""

import hashlib
import reprlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pcd_hub.errors import TeacherError
from pcd_hub.files.strict_json import printable
from pcd_hub.models.layouts import LAYOUTS, CheckpointLayout
from pcd_hub.models.tensor_files import State, check_tensors, load_tensor_file

_MAX_HEAD_LAYERS = 100


class Checkpoint(NamedTuple):
    """Encoder and trained head of a checkpoint."""

    encoder: State
    """Weights with timm's keys."""
    head: nn.Sequential | None
    sha256: str
    """Hash of the file's content."""


def read_checkpoint(file: Path, layout: CheckpointLayout) -> Checkpoint:
    """Read the encoder's weights, with timm's keys, and the trained head.

    Raises:
        TeacherError: If the file is missing or damaged, has another layout, or contains an unknown
            key, NaN or infinity.
    """
    loaded, content = load_tensor_file(file, published=layout.published)
    state = _without_ddp_prefix(_state_dict(loaded, layout, file))
    check_tensors(state, file, size=len(content))
    encoder: State = {}
    head: State = {}
    leftover: list[str] = []
    for key, value in state.items():
        if layout.head and key.startswith(layout.head):
            head[key.removeprefix(layout.head)] = value
        elif key.startswith(layout.unused):
            continue
        elif key.startswith(layout.encoder):
            encoder[key.removeprefix(layout.encoder)] = value
        else:
            leftover.append(key)
    if not encoder:
        raise TeacherError(
            f"{file} has no key under {layout.encoder!r}, it has {_summary(state)}{_hint(state)}"
        )
    if leftover:
        raise TeacherError(
            f"{file} has {len(leftover)} keys that this layout does not have: {_some(leftover)}"
        )
    if layout.head and not head:
        raise TeacherError(
            f"{file} has no trained head under {layout.head!r}; use the full checkpoint of the "
            "pre-training, or the backbone alone as a timm: or local-dir: teacher"
        )
    return Checkpoint(
        encoder,
        head_from_state(head, file) if layout.head else None,
        hashlib.sha256(content).hexdigest(),
    )


def head_from_state(state: Mapping[str, Tensor], file: Path) -> nn.Sequential:
    """Rebuild an ``nn.Sequential`` of Linear, BatchNorm1d and ReLU from its state dict.

    A missing layer number is a ReLU.

    Raises:
        TeacherError: If a layer is neither Linear nor BatchNorm1d, or the layers do not fit
            together.
    """
    by_layer: dict[int, State] = {}
    for key, value in state.items():
        number, _, name = key.partition(".")
        if not (number.isascii() and number.isdigit() and name):
            raise TeacherError(
                f"{file}: the head's key {key!r} is not NUMBER.NAME, as in an nn.Sequential"
            )
        if int(number[:9]) >= _MAX_HEAD_LAYERS:
            raise TeacherError(
                f"{file}: the head's key {key!r} is of a layer beyond {_MAX_HEAD_LAYERS}"
            )
        by_layer.setdefault(int(number), {})[name] = value
    layers = [_layer(by_layer.get(number), file) for number in range(max(by_layer) + 1)]
    head = nn.Sequential(*layers)
    try:
        head.load_state_dict(dict(state), strict=True)
        first = next(layer for layer in layers if isinstance(layer, nn.Linear))
        head.eval()(torch.zeros(1, first.in_features))
    except (RuntimeError, StopIteration) as error:
        *_, reason = str(error).splitlines() or ["none of them is Linear"]
        raise TeacherError(
            f"{file}: the layers of its head do not fit together ({reason.strip()[:160]})"
        ) from error
    return head


def _layer(state: State | None, file: Path) -> nn.Module:
    if state is None:
        return nn.ReLU()
    if "running_mean" in state and state["running_mean"].ndim == 1:
        return nn.BatchNorm1d(len(state["running_mean"]), affine="weight" in state)
    if "weight" in state and state["weight"].ndim == 2:
        out_features, in_features = state["weight"].shape
        return nn.Linear(in_features, out_features, bias="bias" in state)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    raise TeacherError(
        f"{file}: a layer of its head with {shapes} is neither Linear nor BatchNorm1d"
    )


def _state_dict(loaded: Any, layout: CheckpointLayout, file: Path) -> State:
    state = loaded
    if layout.container is not None:
        if not isinstance(loaded, dict) or layout.container not in loaded:
            keys = _some(list(loaded)) if isinstance(loaded, dict) else type(loaded).__name__
            raise TeacherError(
                f"{file} has no entry {layout.container!r}, it has {keys or 'nothing'}; "
                "is it another layout?"
            )
        state = loaded[layout.container]
    items = state.items() if isinstance(state, dict) else ()
    if not items or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in items):
        raise TeacherError(
            f"{file} has no state dict of tensors where this layout has it; is it another layout?"
        )
    return dict(items)


def _without_ddp_prefix(state: State) -> State:
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _summary(state: Mapping[str, Tensor]) -> str:
    roots = Counter(".".join(key.split(".")[:2]) for key in state)
    return "; ".join(f"{root}.* ({count})" for root, count in roots.most_common(4)) or "nothing"


def _hint(state: Mapping[str, Tensor]) -> str:
    """Guess the layout of the file, trying the longest prefixes first."""
    if any(key.startswith("base_encoder.") for key in state):
        return "; MoCo v3's teacher is the momentum encoder, and this is the other one"
    if "conv1.weight" in state and "fc.weight" in state:
        return "; it looks like a ResNet with a classifier, which resnet:ARCH:FILE reads"
    for name, layout in sorted(LAYOUTS.items(), key=lambda item: -len(item[1].head or "")):
        if layout.head and any(key.startswith(layout.head) for key in state):
            return f"; it looks like {name}"
    return ""


def _some(keys: list[Any]) -> str:
    names = (key if isinstance(key, str) else reprlib.repr(key) for key in keys[:4])
    shown = ", ".join(printable(name)[:80] for name in names)
    return shown + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
