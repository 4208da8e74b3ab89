"""Read parts of files by position, in any process: workers inherit or receive no open file."""

import functools
import os
from urllib.parse import urlsplit

from pcd_hub.data.sources.remote import is_remote, read_remote

_MAX_OPEN = 64
"""Files that each process keeps open."""


def read_range(place: str, offset: int, length: int) -> bytes:
    """Read at most ``length`` bytes of a local file or a URL, from ``offset`` on.

    Raises:
        OSError: If it cannot be read.
        DataError: If the URL needs a library that is missing.
    """
    if is_remote(place):
        return read_remote(place, offset, length)
    if not hasattr(os, "pread"):  # Windows
        with open(place, "rb") as file:
            file.seek(offset)
            return file.read(length)
    at = os.stat(place)
    file = _opened(place, os.getpid(), (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns))
    parts = []
    while length and (part := os.pread(file.descriptor, length, offset)):
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


class _OpenFile:
    """A file descriptor that is closed when nothing refers to it; position-independent reads."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if descriptor := getattr(self, "descriptor", None):
            os.close(descriptor)


@functools.lru_cache(maxsize=_MAX_OPEN)
def _opened(path: str, pid: int, version: tuple[int, ...]) -> _OpenFile:
    del pid, version  # each process opens the file itself, and again if it was replaced
    return _OpenFile(path)


def base_name(place: str) -> str:
    """Return the file name of a path or URL."""
    return os.path.basename(urlsplit(place).path if is_remote(place) else place)
