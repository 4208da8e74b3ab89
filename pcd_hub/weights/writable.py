"""Checks that a folder can be written, made before hours of work depend on it."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pcd_hub.errors import ConfigError, WeightError, first_line

_TRIAL_BYTES = 4096


def check_writable(
    folder: Path, *, what: str, remedy: str, num_bytes: int = 0, with_links: bool = False
) -> None:
    """Write and remove a small file in ``folder``, or where it will be made.

    Args:
        folder: It need not exist; it is not made.
        what: The folder's name in the error, as "the store".
        remedy: The end of the error.
        num_bytes: How much must be free there.
        with_links: Whether symbolic links must be possible there too.

    Raises:
        ConfigError: If the system refuses, or there is less room.
    """
    if "\0" in str(folder):  # which looks like one that need only be made
        raise ConfigError(f"{what} {str(folder)!r} holds a NUL character; {remedy}")
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if _exists(path))
        with tempfile.TemporaryDirectory(prefix=".pcd-hub-", dir=existing) as scratch:
            _write_trial(Path(scratch), with_links=with_links)
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise ConfigError(
            f"cannot write to {what} {folder}: {error.strerror or error}; {remedy}"
        ) from error
    if free < num_bytes:
        raise ConfigError(
            f"{what} {folder} has {free / 1e6:.0f} MB free, at least {num_bytes / 1e6:.0f} MB are "
            f"needed; {remedy}"
        )


def check_temporary_folder(*, num_bytes: int = 0) -> None:
    """As :func:`check_writable`, for the folder of temporary files.

    Raises:
        ConfigError: If no folder for temporary files can be written, or there is less room.
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:  # it has tried TMPDIR, /tmp ... and the working folder
        raise ConfigError(
            "no folder for temporary files can be written (TMPDIR, /tmp, /var/tmp, the working "
            "folder); set TMPDIR to one with room"
        ) from error
    check_writable(
        Path(folder),
        what="the folder of temporary files",
        remedy="make room there, or set TMPDIR to another folder",
        num_bytes=num_bytes,
    )


@contextmanager
def writing(place: Path | str, *, remedy: str) -> Iterator[None]:
    """Turn the system's refusal to write into one line.

    Raises:
        WeightError: For any OSError inside the block.
    """
    try:
        yield
    except OSError as error:
        raise WeightError(
            f"cannot write to {place}: {error.strerror or error}; {remedy}"
        ) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the time of the block, in which nothing else is written.

    Raises:
        ConfigError: If there can be none, or for any OSError inside the block.
    """
    check_temporary_folder()
    try:
        with tempfile.TemporaryDirectory(prefix="pcd-hub-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write temporary files to {tempfile.gettempdir()}: "
            f"{error.strerror or first_line(error)}; make room there, or set TMPDIR to another "
            "folder"
        ) from error


def _exists(path: Path) -> bool:
    """Whether anything has that name; a broken link too, over which no folder can be made."""
    if not os.path.lexists(path):
        return False
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return True


def _write_trial(folder: Path, *, with_links: bool) -> None:
    trial = folder / "trial"
    with trial.open("wb") as file:
        file.write(bytes(_TRIAL_BYTES))
        file.flush()
        os.fsync(file.fileno())  # some file systems tell of a full disk no sooner
    if with_links:
        (folder / "link").symlink_to(trial.name)
