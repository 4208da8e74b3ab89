"""Bounded reads of regular files."""

import os
from pathlib import Path


def read_bounded(file: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file; reject pipes and devices, which could block.

    Raises:
        OSError: If the file is missing, unreadable, or not a regular file.
        ValueError: If it is larger than ``max_bytes``, or its content differs from its stated size.
    """
    check_is_file(file)
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{file} has {size} bytes, expected at most {max_bytes}")
        content = opened.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{file} reports {size} bytes but holds another number; copy it again")
    return content


def check_is_file(file: Path) -> None:
    """Check that ``file`` is a regular file, or a link to one.

    Raises:
        FileNotFoundError: If it is not.
    """
    if not file.is_file():
        found = "a folder, a pipe or a device" if file.exists() else "missing"
        raise FileNotFoundError(f"{file} is {found}, expected a regular file")
