"""Read and write files of tensors: safetensors, and what ``torch.save`` wrote."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from pcd_hub.errors import TeacherError, first_line
from pcd_hub.files.read import read_bounded
from pcd_hub.files.strict_json import printable
from pcd_hub.files.write import atomic_file
from pcd_hub.models.torch_files import MAX_FILE_BYTES, read_torch_file

State = dict[str, Tensor]

_MAX_HEADER_BYTES = 4 * 1024**2
_MAX_KEY_LENGTH = 256
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


def load_tensor_file(file: Path, *, published: str = "") -> tuple[Any, bytes]:
    """Return the object in a ``.safetensors`` or ``torch.save`` file, and the file's content.

    Args:
        file: Any path.
        published: Where to get the file, for the error if it is missing.

    Raises:
        TeacherError: If the file is missing, too large, damaged, or holds more than tensors in
            plain containers.
    """
    try:
        size = file.stat().st_size if file.is_file() else None  # never open a pipe
    except (OSError, ValueError):  # a name that no file can have
        size = None
    if size is None:
        remedy = f"; {published}" if published else ""
        raise TeacherError(f"no teacher file {printable(str(file))[:200]}{remedy}")
    if size > MAX_FILE_BYTES:
        raise TeacherError(f"{file} has {size} bytes, expected at most {MAX_FILE_BYTES}")
    try:
        return _load_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)
    except Exception as error:
        raise TeacherError(
            f"{file} is truncated, or no checkpoint of plain tensors "
            f"({type(error).__name__}: {printable(first_line(error))[:160]}); "
            "download it again and compare its size and checksum with the source's"
        ) from error


def load_tensors(file: Path) -> State:
    """Return the tensors of a safetensors file, checked by :func:`check_tensors`.

    Raises:
        TeacherError: As :func:`load_tensor_file` and :func:`check_tensors`.
    """
    state, content = load_tensor_file(file)
    check_tensors(state, file, size=len(content))
    return state


def check_tensors(state: State, file: Path, *, size: int) -> None:
    """Check that keys are printable, and values finite and of a usual dtype.

    Args:
        state: The tensors.
        file: Named in errors.
        size: The file's size in bytes, which bounds the work.

    Raises:
        TeacherError: Naming the key.
    """
    for key in state:
        if len(key) > _MAX_KEY_LENGTH or not key.isprintable():
            raise TeacherError(
                f"{file} has the key {reprlib.repr(key)}, expected at most {_MAX_KEY_LENGTH} "
                "printable characters"
            )
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > 2 * size:  # some tensors are stored once under two names
        raise TeacherError(
            f"{file} has {size} bytes, but its tensors claim {claimed}; "
            "save each tensor by itself, with Tensor.clone()"
        )
    for key, value in state.items():
        if value.dtype not in _DTYPES:
            raise TeacherError(
                f"{file}: {key} holds {value.dtype}, expected float16 to float64, bfloat16 or "
                "integers; convert it, with the scale that belongs to it"
            )
        if not torch.isfinite(value).all():
            raise TeacherError(f"{file}: {key} holds NaN or infinity; use another checkpoint")


def save_tensors(tensors: State, file: Path) -> None:
    """Write a safetensors file, complete or not at all, that every user may read.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_file(file, mode=0o644) as draft, writing_tensors(file):
        save_file(tensors, draft, metadata={"format": "pt"})


@contextmanager
def writing_tensors(file: Path) -> Iterator[None]:
    """Turn what safetensors and ``torch.save`` raise on a full disk into an OSError.

    Raises:
        OSError: For a SafetensorError or RuntimeError inside the block.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"cannot write {file}: {first_line(error)}") from error


def _load_safetensors(file: Path) -> tuple[State, bytes]:
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if header > _MAX_HEADER_BYTES:
        raise ValueError(f"its header has {header} bytes, expected at most {_MAX_HEADER_BYTES}")
    content = read_bounded(file, MAX_FILE_BYTES)
    return load(content), content
