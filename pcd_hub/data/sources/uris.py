"""Split the URI of a data source into scheme and path, and look up paths that a user named.

``exists``, ``is_dir`` and ``is_file`` never raise; the methods of ``Path`` do in some versions of
Python if a name is too long for the system or a folder is not accessible.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from pcd_hub.errors import DataError, nearest


def split_uri(uri: str, schemes: Collection[str]) -> tuple[str, str]:
    """Split ``SCHEME:REST``; for a path, the scheme is ``""`` and ``REST`` is the whole path.

    Only the given ``schemes`` count: ``2026-11-26T10:30/images`` and ``D:/images`` are paths. A
    folder whose name starts like a scheme is written ``./hf:images``.

    Args:
        uri: URI or path from the user.
        schemes: Schemes that the caller can open.

    Raises:
        DataError: If the URI is empty or contains a NUL character, or if it starts with something
            like a scheme that is not one of ``schemes`` and no such path exists.
    """
    scheme, colon, rest = uri.partition(":")
    if not uri.strip() or (
        scheme in schemes and scheme != "scenes" and not rest.partition(":")[0].strip()
    ):
        raise DataError(
            f"'{uri}' names no folder or data set (is a shell variable unset?): expected a path or "
            "a URI; the working folder is ."
        )
    if "\0" in uri:
        raise DataError(f"{uri!r} contains a NUL character; remove it")
    if colon and scheme in schemes:
        return scheme, rest
    if colon and re.fullmatch(r"[a-z][a-z0-9-]+", scheme) and not exists(local_path(uri)):
        raise DataError(
            f"unknown kind of data set '{scheme}'{nearest(scheme, schemes)}: expected one of "
            f"{', '.join(schemes)}, or a folder"
        )
    return "", uri


def local_path(text: str) -> Path:
    """Return the path with ``~`` and ``~user`` expanded if the user exists."""
    return Path(os.path.expanduser(text))


def exists(path: Path) -> bool:
    """Check whether the path exists; False if it is not accessible."""
    return os.path.exists(path)


def is_dir(path: Path) -> bool:
    """Check whether the path is a folder; False if it is not accessible."""
    return os.path.isdir(path)


def is_file(path: Path) -> bool:
    """Check whether the path is a regular file; False if it is not accessible."""
    return os.path.isfile(path)
