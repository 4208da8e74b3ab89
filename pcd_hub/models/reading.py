"""Files of strangers, read without waiting and without end."""

import os
from pathlib import Path

MAX_FILE_BYTES = 16 * 1024**3
"""Of weights."""


def read_bounded(file: Path, most: int) -> bytes:
    """All bytes of a regular file: a pipe is not waited for, a device not read for ever.

    Raises:
        OSError: If there is no such file, or it is no regular one.
        ValueError: If it has more than ``most`` bytes, or other than it says.
    """
    check_is_file(file)
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > most:
            raise ValueError(f"{file} has {size} bytes, at most {most} are read")
        content = opened.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{file} says that it has {size} bytes, and has not; copy it anew")
    return content


def check_is_file(file: Path) -> None:
    """Check that it is a regular file.

    Raises:
        OSError: If not.
    """
    if not file.is_file():
        found = "it is a folder, a pipe or a device" if file.exists() else "there is none"
        raise FileNotFoundError(f"{file} should be a file, and {found}")
