"""Check early, before a long run, that folders are writable."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pcd_hub.errors import ConfigError, WeightError, first_line
from pcd_hub.files.write import atomic_write

_PROBE_BYTES = 4096
_TEMPORARY_REMEDY = "make room there, or set TMPDIR to another folder"


def check_writable(folder: Path, *, what: str, remedy: str, num_bytes: int = 0) -> None:
    """Check that ``folder`` is writable, by writing and removing a small file.

    Args:
        folder: The folder; if it does not exist, its nearest existing parent is checked instead.
        what: Name of the folder in the error message, such as "the store".
        remedy: Remedy at the end of the error message.
        num_bytes: The free space needed.

    Raises:
        ConfigError: If the folder is not writable, or has less free space.
    """
    if "\0" in str(folder):  # or it would pass as a folder that can be created
        raise ConfigError(f"{what} {str(folder)!r} contains a NUL character; {remedy}")
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if _is_folder(path))
        with tempfile.TemporaryDirectory(prefix=".pcd-hub-", dir=existing) as scratch:
            # Flushed, because some file systems report a full disk only then.
            atomic_write(Path(scratch) / "probe", bytes(_PROBE_BYTES))
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise ConfigError(
            f"cannot write to {what} {folder}: {error.strerror or error}; {remedy}"
        ) from error
    if free < num_bytes:
        raise ConfigError(
            f"{what} {folder} has {free / 1e6:.0f} MB free, expected at least "
            f"{num_bytes / 1e6:.0f} MB; {remedy}"
        )


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of ``folder``, which need not exist.

    Raises:
        OSError: If they cannot be determined.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free


def check_temporary_folder(*, num_bytes: int = 0) -> None:
    """Check that the folder of temporary files is writable.

    Raises:
        ConfigError: If it is not, or has less free space than ``num_bytes``.
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:  # TMPDIR, /tmp ... and the working folder all failed
        raise ConfigError(
            "no folder for temporary files can be written (TMPDIR, /tmp, /var/tmp, the working "
            "folder); set TMPDIR to one with room"
        ) from error
    check_writable(
        Path(folder),
        what="the folder of temporary files",
        remedy=_TEMPORARY_REMEDY,
        num_bytes=num_bytes,
    )


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder that is removed after the block.

    Raises:
        ConfigError: If it cannot be created, or for any OSError inside the block.
    """
    check_temporary_folder()
    try:
        with tempfile.TemporaryDirectory(prefix="pcd-hub-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write temporary files to {tempfile.gettempdir()}: "
            f"{error.strerror or first_line(error)}; {_TEMPORARY_REMEDY}"
        ) from error


@contextmanager
def writing(place: Path | str, *, remedy: str) -> Iterator[None]:
    """Turn any OSError inside the block into a one-line WeightError.

    Raises:
        WeightError: For any OSError inside the block.
    """
    try:
        yield
    except OSError as error:
        raise WeightError(
            f"cannot write to {place}: {error.strerror or error}; {remedy}"
        ) from error


def _is_folder(path: Path) -> bool:
    """Return whether the path exists; raise if it is not a folder (a file or a broken link)."""
    if not os.path.lexists(path):
        return False
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return True
