"""Short texts that change when a set of files does; no file is read for them."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

MOST_SIZES = 4096
"""Files that are asked for their size: milliseconds on a disk, seconds over a network."""


def names_digest(names: Iterable[str]) -> str:
    """First half of the sha256 over all names, in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def sizes_digest(count: int, path_of: Callable[[int], str | os.PathLike[str]]) -> str:
    """The same over the sizes in bytes of at most ``MOST_SIZES`` files, spread evenly.

    Sizes, and not times: a copy on another machine is the same set. Files that change in place
    without changing their size, or between those that are asked, are not noticed.

    Args:
        count: How many files there are.
        path_of: Given the number of one, its path.
    """
    asked = np.linspace(0, count - 1, min(count, MOST_SIZES)).round().astype(np.int64)
    return names_digest(str(_size(path_of(index))) for index in asked.tolist())


def _size(path: str | os.PathLike[str]) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # broken images are counted where they are read
        return -1
