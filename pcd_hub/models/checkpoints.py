"""Foreign checkpoint layouts -> timm's keys, every key accounted for.

A layout says where in a file the encoder and its trained head lie, and what else is expected there
and not needed. Anything beyond that is an error: half a teacher is worse than none.
"""

import hashlib
import io
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor, nn

from pcd_hub.errors import TeacherError, first_line, nearest
from pcd_hub.files.read import read_bounded
from pcd_hub.models.pickles import MAX_FILE_BYTES, read_saved

State = dict[str, Tensor]

_MAX_HEADER_BYTES = 4 * 1024**2
_MAX_KEY_LENGTH = 256
_MAX_HEAD_LAYERS = 100
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """Where a family of self-supervised checkpoints keeps what.

    Prefixes are those after ``module.``, which DistributedDataParallel puts before every key and
    which is dropped wherever all keys have it.
    """

    architecture: str
    """timm architecture whose keys the encoder has."""
    container: str | None
    """Key of the state dict in the file; None if the file is the state dict."""
    encoder: str
    """Prefix of the encoder to use."""
    head: str | None
    """Prefix of the trained head, None if the family has none that can work on pixels.

    Its layers are numbered as in an ``nn.Sequential``.
    """
    unused: tuple[str, ...] = ()
    """Prefixes of what else such a file holds: the other branch, the predictor, prototypes."""
    published: str = ""
    """Where the authors publish such a file."""


_MOCO_UNUSED = ("base_encoder.", "predictor.")

LAYOUTS: dict[str, CheckpointLayout] = {
    "mocov3_r50": CheckpointLayout(
        architecture="resnet50",
        container="state_dict",
        encoder="momentum_encoder.",
        head="momentum_encoder.fc.",
        unused=_MOCO_UNUSED,
        published="download r-50-1000ep.pth.tar of MoCo v3's release, "
        "https://dl.fbaipublicfiles.com/moco-v3/r-50-1000ep/r-50-1000ep.pth.tar, and give it as "
        "mocov3_r50:FILE",
    ),
    "mocov3_vit_b": CheckpointLayout(
        architecture="vit_base_patch16_224",
        container="state_dict",
        encoder="momentum_encoder.",
        head="momentum_encoder.head.",
        unused=_MOCO_UNUSED,
    ),
    "byol_r50": CheckpointLayout(
        architecture="resnet50",
        container="model",
        encoder="target_encoder.",
        head="target_encoder.fc.",
        unused=("online_encoder.", "predictor."),
    ),
    "swav_r50": CheckpointLayout(
        architecture="resnet50",
        container=None,
        encoder="",
        head="projection_head.",
        unused=("prototypes.",),
    ),
    "barlow_twins_r50": CheckpointLayout(
        architecture="resnet50",
        container="model",
        encoder="backbone.",
        head="projector.",
        unused=("bn.",),
    ),
    "dino_r50": CheckpointLayout(
        architecture="resnet50", container=None, encoder="", head=None, unused=()
    ),
}
"""By the name a user writes before the file: ``mocov3_r50:FILE``.

``dino_r50`` is DINO's backbone file; its head (GELU, a normalisation) cannot work on pixels. With
an architecture in between, :func:`layout_of` knows ``mocov3:ARCH:FILE`` and ``resnet:ARCH:FILE``.
"""

FAMILIES = ("mocov3", "resnet")
"""Layouts that need an architecture: ``mocov3:ARCH``, ``resnet:ARCH``."""


def layout_of(name: str, architecture: str = "") -> CheckpointLayout:
    """The layout of one of ``LAYOUTS``, or of a family with ``architecture``.

    ``mocov3``: as ``recipes/pretrain.py`` writes it, for any timm ResNet. ``resnet``: the plain
    state dict of a torchvision or timm ResNet, supervised or not; its classifier is left out.

    Raises:
        TeacherError: If there is no such layout, or a family comes without an architecture.
    """
    if name in FAMILIES and not architecture:
        raise TeacherError(f"{name} needs an architecture, as in {name}:resnet50")
    match name:
        case "mocov3":
            return CheckpointLayout(
                architecture=architecture,
                container="state_dict",
                encoder="momentum_encoder.",
                head="momentum_encoder.fc.",
                unused=_MOCO_UNUSED,
            )
        case "resnet":
            return CheckpointLayout(
                architecture=architecture, container=None, encoder="", head=None, unused=("fc.",)
            )
    if name not in LAYOUTS:
        known = (*LAYOUTS, *(f"{family}:ARCH" for family in FAMILIES))
        raise TeacherError(
            f"no checkpoint layout '{name}'{nearest(name, known)}; there are {', '.join(known)}"
        )
    return LAYOUTS[name]


class Checkpoint(NamedTuple):
    """What was read of a file."""

    encoder: State
    """Under timm's names."""
    head: nn.Sequential | None
    sha256: str
    """Of the very bytes that were parsed."""


def read_checkpoint(file: Path, layout: CheckpointLayout) -> Checkpoint:
    """Encoder weights under timm's names, and the trained head, from a checkpoint.

    ``.safetensors``, or what torch saved, which is opened with ``weights_only=True``.

    Raises:
        TeacherError: If the file is missing, damaged, of another layout, or holds a key nobody
            expects or a value that is not finite.
    """
    loaded, content = _load(file, layout.published)
    state = _without_ddp_prefix(_state_dict(loaded, layout, file))
    _check_tensors(state, file, size=len(content))
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
    return Checkpoint(
        encoder,
        head_from_state(head, file) if layout.head else None,
        hashlib.sha256(content).hexdigest(),
    )


def read_tensors(file: Path) -> State:
    """All tensors of a safetensors file, finite and under printable names.

    Raises:
        TeacherError: If the file is missing or damaged, or naming the tensor.
    """
    state, content = _load(file)
    _check_tensors(state, file, size=len(content))
    return state


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
            f"{file}: the layers of its head do not fit each other ({reason.strip()[:160]})"
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


def _load(file: Path, published: str = "") -> tuple[Any, bytes]:
    """What the file holds, and the very bytes that were parsed."""
    try:
        size = file.stat().st_size if file.is_file() else None  # a pipe would be waited for
    except OSError:  # a name that no file can have
        size = None
    if size is None:
        where = f"; {published}" if published else ""
        raise TeacherError(f"no teacher file {_plain(str(file))[:200]}{where}")
    if size > MAX_FILE_BYTES:
        raise TeacherError(f"{file} has {size} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        return _parsed(file)
    except Exception as error:
        raise TeacherError(
            f"{file} is truncated or no checkpoint of plain tensors "
            f"({type(error).__name__}: {_plain(first_line(error))[:160]}); "
            "download it again and compare its size and checksum with the source's"
        ) from error


def _parsed(file: Path) -> tuple[Any, bytes]:
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        if header > _MAX_HEADER_BYTES:
            raise ValueError(f"its header of {header} bytes is longer than {_MAX_HEADER_BYTES}")
        content = read_bounded(file, MAX_FILE_BYTES)
        return load(content), content
    content = read_saved(file)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), content


def _state_dict(loaded: Any, layout: CheckpointLayout, file: Path) -> State:
    state = loaded
    if layout.container is not None:
        if not isinstance(loaded, dict) or layout.container not in loaded:
            keys = _some(list(loaded)) if isinstance(loaded, dict) else type(loaded).__name__
            raise TeacherError(
                f"{file} has no entry {layout.container!r} (it holds {keys}): another layout"
            )
        state = loaded[layout.container]
    # A file may give an OrderedDict an attribute `items`; of the base class there is but one.
    pairs = dict.items(state) if isinstance(state, dict) else ()
    if not pairs or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in pairs):
        raise TeacherError(
            f"{file} holds no state dict of tensors where this layout has it: another layout"
        )
    return dict(pairs)


def _check_tensors(state: State, file: Path, *, size: int) -> None:
    """Check keys and values, in the time that the file's size allows.

    Raises:
        TeacherError: Naming the key.
    """
    for key in state:
        if len(key) > _MAX_KEY_LENGTH or not key.isprintable():
            raise TeacherError(
                f"{file} holds the key {reprlib.repr(key)}; it may have {_MAX_KEY_LENGTH} "
                "characters, all of them printable"
            )
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > 2 * size:  # some tensors are one under two names
        raise TeacherError(
            f"{file} has {size} bytes, and its tensors claim {claimed}; "
            "save each for itself, by Tensor.clone()"
        )
    for key, value in state.items():
        if value.dtype not in _DTYPES:
            raise TeacherError(
                f"{file}: {key} holds {value.dtype}, and weights are of float16 to float64, "
                "bfloat16 or whole numbers; convert it, with the scale that belongs to it"
            )
        if not torch.isfinite(value).all():
            raise TeacherError(f"{file}: {key} holds NaN or infinity; take another checkpoint")


def _without_ddp_prefix(state: State) -> State:
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _summary(state: Mapping[str, Tensor]) -> str:
    roots = Counter(".".join(key.split(".")[:2]) for key in state)
    return "; ".join(f"{root}.* ({count})" for root, count in roots.most_common(4)) or "nothing"


def _looks_like(state: Mapping[str, Tensor]) -> str:
    """A hint at what the file is, most specific prefix first."""
    if any(key.startswith("base_encoder.") for key in state):
        return "; of MoCo v3 the momentum encoder is the teacher, here is only the other one"
    if "conv1.weight" in state and "fc.weight" in state:
        return "; it looks like a ResNet with a classifier, which resnet:ARCH:FILE reads"
    for name, layout in sorted(LAYOUTS.items(), key=lambda item: -len(item[1].head or "")):
        if layout.head and any(key.startswith(layout.head) for key in state):
            return f"; it looks like {name}"
    return ""


def _some(keys: list[Any]) -> str:
    shown = ", ".join(_plain(key)[:80] for key in keys[:4])
    return shown + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _plain(value: object) -> str:
    """For a message: in characters that no terminal obeys."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return "".join(c if c.isprintable() else "?" for c in text)
