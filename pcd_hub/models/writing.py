"""Writes of tensors, whose failures are those of any other file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pcd_hub.errors import first_line


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file that every user may read.

    Raises:
        OSError: If the system refuses.
    """
    with writing_tensors(file):
        save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors writes 0600: a shared store could not be read


@contextmanager
def writing_tensors(file: Path) -> Iterator[None]:
    """Turn what safetensors and ``torch.save`` raise when a disk is full into an OSError.

    Raises:
        OSError: For a SafetensorError or RuntimeError inside the block.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"cannot write {file}: {first_line(error)}") from error
