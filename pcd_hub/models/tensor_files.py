"""Read and write tensor files: safetensors, and files of ``torch.save``."""

import hashlib
import reprlib
from collections.abc import Iterator, Mapping
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
from pcd_hub.models.torch_files import MAX_FILE_BYTES, UnknownObjectError, read_torch_file

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
        file: A path, which need not exist.
        published: Download instructions, for the error message if the file is missing.

    Raises:
        TeacherError: If the file is missing, too large or damaged, or contains anything but tensors
            in plain containers.
    """
    try:
        size = file.stat().st_size if file.is_file() else None  # opening a pipe would block
    except (OSError, ValueError):  # an invalid file name
        size = None
    if size is None:
        remedy = published or "expected a checkpoint (torch.save or safetensors)"
        raise TeacherError(f"no teacher file {printable(str(file))[:200]}; {remedy}")
    if size > MAX_FILE_BYTES:
        raise TeacherError(f"{file} has {size} bytes, expected at most {MAX_FILE_BYTES}")
    try:
        return _load_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)
    except UnknownObjectError as error:
        raise TeacherError(
            f"{file} is no checkpoint of plain tensors: {printable(str(error))}"
        ) from error
    except Exception as error:
        raise TeacherError(
            f"{file} is truncated, or no checkpoint of plain tensors "
            f"({type(error).__name__}: {printable(first_line(error))[:160]}); "
            "download it again and compare its size and checksum with the source's"
        ) from error


def load_tensors(file: Path) -> State:
    """Return the tensors of a safetensors file, checked by :func:`check_tensors`.

    Raises:
        TeacherError: See :func:`load_tensor_file` and :func:`check_tensors`.
    """
    state, content = load_tensor_file(file)
    check_tensors(state, file, size=len(content))
    return state


def check_tensors(state: State, file: Path, *, size: int) -> None:
    """Check that keys are printable, and that values are finite and have a common dtype.

    Args:
        state: The tensors.
        file: The file's path, for error messages.
        size: The file's size in bytes; the tensors may not be much larger.

    Raises:
        TeacherError: If a tensor is invalid; the message names its key.
    """
    for key in state:
        if len(key) > _MAX_KEY_LENGTH or not key.isprintable():
            raise TeacherError(
                f"{file} has the key {reprlib.repr(key)}, expected at most {_MAX_KEY_LENGTH} "
                "printable characters"
            )
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > 2 * size:  # twice, because tensors may be shared by two names
        raise TeacherError(
            f"{file} has {size} bytes, but its tensors claim {claimed}; "
            "save each tensor separately, with Tensor.clone()"
        )
    for key, value in state.items():
        if value.dtype not in _DTYPES:
            raise TeacherError(
                f"{file}: {key} holds {value.dtype}, expected float16 to float64, bfloat16 or "
                "integers; convert it, with the scale that belongs to it"
            )
        if not torch.isfinite(value).all():
            raise TeacherError(f"{file}: {key} holds NaN or infinity; use another checkpoint")


def tensors_sha256(*states: Mapping[str, Tensor]) -> str:
    """Return the hash of the names and values of all tensors, on the CPU."""
    digest = hashlib.sha256()
    for state in states:
        for key, value in sorted(state.items()):
            digest.update(key.encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_tensors(tensors: State, file: Path) -> None:
    """Write a safetensors file atomically, readable by every user.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_file(file, mode=0o644) as draft, writing_tensors(file):
        save_file(tensors, draft, metadata={"format": "pt"})


@contextmanager
def writing_tensors(file: Path) -> Iterator[None]:
    """Turn the exceptions of safetensors and ``torch.save`` on a full disk into an OSError.

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
