"""Foreign checkpoint layouts -> timm's keys, every key accounted for.

A layout says where in a file the encoder and its trained head lie, and what else is expected there
and not needed. Anything beyond that is an error: half a teacher is worse than none.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcd_hub.errors import TeacherError

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """Where a family of self-supervised checkpoints keeps what."""

    architecture: str
    """timm architecture whose keys the encoder has."""
    container: str | None
    """Key of the state dict in the file; None if the file is the state dict."""
    encoder: str
    """Prefix of the encoder to use."""
    head: str | None
    """Prefix of the trained head, None if the family has none.

    Its layers are numbered as in an ``nn.Sequential``.
    """
    unused: tuple[str, ...] = ()
    """Prefixes of what else such a file holds: the other branch, the predictor, prototypes."""


_MOCO_UNUSED = ("module.base_encoder.", "module.predictor.")

LAYOUTS: dict[str, CheckpointLayout] = {
    "mocov3_r50": CheckpointLayout(
        architecture="resnet50",
        container="state_dict",
        encoder="module.momentum_encoder.",
        head="module.momentum_encoder.fc.",
        unused=_MOCO_UNUSED,
    ),
    "mocov3_vit_b": CheckpointLayout(
        architecture="vit_base_patch16_224",
        container="state_dict",
        encoder="module.momentum_encoder.",
        head="module.momentum_encoder.head.",
        unused=_MOCO_UNUSED,
    ),
    "byol_r50": CheckpointLayout(
        architecture="resnet50",
        container="model",
        encoder="module.target_encoder.",
        head="module.target_encoder.fc.",
        unused=("module.online_encoder.", "module.predictor."),
    ),
    "swav_r50": CheckpointLayout(
        architecture="resnet50",
        container=None,
        encoder="module.",
        head="module.projection_head.",
        unused=("module.prototypes.",),
    ),
    "barlow_twins_r50": CheckpointLayout(
        architecture="resnet50",
        container="model",
        encoder="module.backbone.",
        head="module.projector.",
        unused=("module.bn.",),
    ),
}
"""By the name a user writes before the file: ``mocov3_r50:FILE``.

``mocov3:ARCH:FILE`` takes any timm ResNet.
"""


def moco_layout(architecture: str) -> CheckpointLayout:
    """The MoCo v3 layout with another encoder, as ``recipes/pretrain.py`` writes it."""
    return CheckpointLayout(
        architecture=architecture,
        container="state_dict",
        encoder="module.momentum_encoder.",
        head="module.momentum_encoder.fc.",
        unused=_MOCO_UNUSED,
    )


def read_checkpoint(file: Path, layout: CheckpointLayout) -> tuple[State, nn.Sequential | None]:
    """Encoder weights under timm's names, and the trained head, from a torch checkpoint.

    The file is unpickled with ``weights_only=True``.

    Raises:
        TeacherError: If the file is missing, damaged, of another layout, or holds a key nobody
            expects.
    """
    state = _state_dict(_load(file), layout, file)
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
            f"{file} has no key under {layout.encoder!r}; "
            f"it holds {_summary(state)}{_looks_like(state)}"
        )
    if leftover:
        raise TeacherError(
            f"{file} holds {len(leftover)} keys nobody expects in this layout: {_some(leftover)}"
        )
    if layout.head and not head:
        raise TeacherError(
            f"{file} has no trained head under {layout.head!r}; "
            "take the full checkpoint of the pre-training, "
            "or the backbone alone as a timm: or local-dir: teacher"
        )
    return encoder, head_from_state(head, file) if layout.head else None


def head_from_state(state: Mapping[str, Tensor], file: Path) -> nn.Sequential:
    """Rebuild an ``nn.Sequential`` of Linear, BatchNorm1d and ReLU from its state dict.

    Missing numbers are ReLUs.

    Raises:
        TeacherError: If a layer is neither Linear nor BatchNorm1d, or the layers do not fit each
            other.
    """
    by_layer: dict[int, State] = {}
    for key, value in state.items():
        number, _, name = key.partition(".")
        if not number.isdigit() or not name:
            raise TeacherError(
                f"{file}: the head's key {key!r} is not NUMBER.NAME, as in an nn.Sequential"
            )
        by_layer.setdefault(int(number), {})[name] = value
    layers = [_layer(by_layer.get(number), file) for number in range(max(by_layer) + 1)]
    head = nn.Sequential(*layers)
    try:
        head.load_state_dict(dict(state), strict=True)
        first = next(layer for layer in layers if isinstance(layer, nn.Linear))
        head.eval()(torch.zeros(1, first.in_features))
    except (RuntimeError, StopIteration) as error:
        raise TeacherError(
            f"{file}: the layers of its head do not fit each other ({error})"
        ) from error
    return head


def _layer(state: State | None, file: Path) -> nn.Module:
    if state is None:
        return nn.ReLU()
    if "running_mean" in state:
        return nn.BatchNorm1d(len(state["running_mean"]), affine="weight" in state)
    if "weight" in state and state["weight"].ndim == 2:
        out_features, in_features = state["weight"].shape
        return nn.Linear(in_features, out_features, bias="bias" in state)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    raise TeacherError(
        f"{file}: a layer of its head with {shapes} is neither Linear nor BatchNorm1d"
    )


def _load(file: Path) -> Any:
    if not file.is_file():
        raise TeacherError(f"no teacher file {file}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0][:160]
        raise TeacherError(
            f"{file} is truncated or no torch checkpoint of plain tensors "
            f"({type(error).__name__}: {reason}); "
            "download it again and compare its size and checksum with the source's"
        ) from error


def _state_dict(loaded: Any, layout: CheckpointLayout, file: Path) -> State:
    state = loaded
    if layout.container is not None:
        if not isinstance(loaded, dict) or layout.container not in loaded:
            keys = _some(list(loaded)) if isinstance(loaded, dict) else type(loaded).__name__
            raise TeacherError(
                f"{file} has no entry {layout.container!r} (it holds {keys}): another layout"
            )
        state = loaded[layout.container]
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise TeacherError(
            f"{file} holds no state dict of tensors where this layout has it: another layout"
        )
    return state


def _summary(state: Mapping[str, Tensor]) -> str:
    roots = Counter(".".join(key.split(".")[:2]) for key in state)
    return "; ".join(f"{root}.* ({count})" for root, count in roots.most_common(4)) or "nothing"


def _looks_like(state: Mapping[str, Tensor]) -> str:
    """A hint at another layout, most specific prefix first."""
    for name, layout in sorted(LAYOUTS.items(), key=lambda item: -len(item[1].head or "")):
        if layout.head and any(key.startswith(layout.head) for key in state):
            return f"; it looks like {name}"
    return ""


def _some(keys: list[Any]) -> str:
    shown = ", ".join(str(key) for key in keys[:4])
    return shown + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
