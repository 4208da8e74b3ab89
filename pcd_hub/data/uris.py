"""Tells the scheme of a source's URI from a path, which may hold colons itself.

The methods of ``Path`` raise, in some versions of Python, where a name is too long for the system
or a folder may not be entered: whoever looks for a place that a user named asks here.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from pcd_hub.errors import DataError, nearest


def split_uri(uri: str, schemes: Collection[str]) -> tuple[str, str]:
    """Split ``SCHEME:REST``; a path has the scheme ``""``, and ``REST`` is the whole of it.

    Only the ``schemes`` count: ``2026-11-26T10:30/images`` and ``D:/images`` are paths. A folder
    whose name begins like a scheme is written ``./hf:images``.

    Args:
        uri: What the user wrote.
        schemes: Those that the caller can open.

    Raises:
        DataError: If nothing is named, or what no path can hold; or if the part before the colon
            looks like a scheme, is none of these, and there is no such path.
    """
    scheme, colon, rest = uri.partition(":")
    if not uri.strip() or (
        scheme in schemes and scheme != "scenes" and not rest.partition(":")[0].strip()
    ):
        raise DataError(
            f"name the images: '{uri}' is no folder or data set (a shell variable may be unset); "
            "the working folder is ."
        )
    if "\0" in uri:
        raise DataError(f"{uri!r} holds a NUL character, which no name may; remove it")
    if colon and scheme in schemes:
        return scheme, rest
    if colon and re.fullmatch(r"[a-z][a-z0-9-]+", scheme) and not exists(local_path(uri)):
        raise DataError(
            f"no kind of data set '{scheme}'{nearest(scheme, schemes)}; there are "
            f"{', '.join(schemes)}, or a folder"
        )
    return "", uri


def local_path(text: str) -> Path:
    """Return the path, with ``~`` and ``~user`` expanded where there is such a user."""
    return Path(os.path.expanduser(text))


def exists(path: Path) -> bool:
    """Whether there is anything of that name, as far as the system lets us see."""
    return os.path.exists(path)


def is_dir(path: Path) -> bool:
    """Whether there is such a folder, as far as the system lets us see."""
    return os.path.isdir(path)


def is_file(path: Path) -> bool:
    """Whether there is such a plain file, as far as the system lets us see."""
    return os.path.isfile(path)
