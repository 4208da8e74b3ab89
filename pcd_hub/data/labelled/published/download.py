"""Download a published data set once, and write it in a layout that the readers know.

::

    <place>/archives/oxford_pets/images.tar.gz    as downloaded; may be removed afterwards
    <place>/oxford_pets/                          the layout; complete if it exists
        source.json                               the archives' md5 sums

An archive whose md5 differs, because its download was interrupted, is downloaded again from its
first byte (torchvision's downloader). The layout is written beside its place and renamed at the
end.
"""

import json
import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from huggingface_hub import constants

from pcd_hub.data.labelled.published.sets import Archive, PublishedSet
from pcd_hub.errors import DataError, first_line
from pcd_hub.files.writable import check_writable

log = logging.getLogger("pcd_hub")

FACTS = "source.json"
_LAYOUT = 1
"""Version of the layouts; a folder of another version is written again."""
_TIMEOUT_SECONDS = 60.0
_REMEDY = "free some space, or set PCD_HUB_HOME to another folder"


def prepare_set(wanted: PublishedSet, place: Path) -> Path:
    """Return the folder of a set; download and write it first if it is missing.

    Args:
        wanted: The set.
        place: The folder of all sets.

    Raises:
        ConfigError: If ``place`` cannot be written or has too little free space.
        DataError: If an archive cannot be downloaded or has another md5.
    """
    folder = place / wanted.name
    if is_ready(wanted, folder):
        return folder
    # An archive, and the files that are taken from it, which are less.
    num_bytes = 2 * wanted.megabytes * 10**6
    check_writable(place, what="the folder of data sets", remedy=_REMEDY, num_bytes=num_bytes)
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / f".{wanted.name}.lock", wanted.name):
        if not is_ready(wanted, folder):
            files = [_fetch(wanted, archive, place) for archive in wanted.archives]
            _write(wanted, files, folder)
    return folder


def is_ready(wanted: PublishedSet, folder: Path) -> bool:
    """Return whether the folder has the layout of the set's archives."""
    try:
        found = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError):
        return False
    return found == _facts(wanted)


def _facts(wanted: PublishedSet) -> dict[str, Any]:
    return {"layout": _LAYOUT, "md5": {archive.name: archive.md5 for archive in wanted.archives}}


@contextmanager
def _locked(file: Path, name: str) -> Iterator[None]:
    """Wait until no other process prepares the set."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for another process that prepares it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(wanted: PublishedSet, archive: Archive, place: Path) -> Path:
    """Return the file of an archive, downloaded if it is missing or has another md5."""
    # Not at the top: only a download needs torchvision's data sets.
    from torchvision.datasets.utils import check_integrity, download_url  # noqa: PLC0415

    file = archive_file(wanted, archive, place)
    if check_integrity(file, archive.md5):
        return file
    file.parent.mkdir(parents=True, exist_ok=True)  # also for whoever puts it there by hand
    reason: object = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        log.info("download %s from %s", archive.name, urlsplit(archive.url).netloc)
        try:
            with _timeout():
                download_url(archive.url, file.parent, archive.name, archive.md5)
        except (OSError, HTTPException, RuntimeError) as error:
            reason = error
        else:
            return file
    raise DataError(
        f"cannot download {wanted.name} ({_described(reason, file, archive)}); connect to the "
        f"internet and start the same command again, or save {archive.url} as {file} "
        f"(md5 {archive.md5})"
    ) from (reason if isinstance(reason, Exception) else None)


def archive_file(wanted: PublishedSet, archive: Archive, place: Path) -> Path:
    """Return where an archive is kept, and may be put by hand."""
    return place / "archives" / wanted.name / archive.name


def _described(reason: object, file: Path, archive: Archive) -> str:
    """Return the reason of a failed download in words."""
    if not isinstance(reason, RuntimeError) or not file.is_file():
        return first_line(reason) if isinstance(reason, Exception) else str(reason)
    from torchvision.datasets.utils import calculate_md5  # noqa: PLC0415 - as above

    return (
        f"the download was cut off or the file has changed: {file.stat().st_size} bytes with md5 "
        f"{calculate_md5(file)}, expected {archive.md5}"
    )


@contextmanager
def _timeout() -> Iterator[None]:
    """Let a connection fail that stalls; torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _write(wanted: PublishedSet, files: list[Path], folder: Path) -> None:
    """Write the layout beside its place, and rename it."""
    log.info("write %s", folder)
    for left_behind in folder.parent.glob(f".{wanted.name}-*"):  # by a killed process
        shutil.rmtree(left_behind, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{wanted.name}-", dir=folder.parent))
    try:
        wanted.write(files, draft)
        (draft / FACTS).write_text(json.dumps(_facts(wanted), indent=2) + "\n")
        draft.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except OSError as error:
        raise DataError(
            f"cannot write {folder} ({error.strerror or first_line(error)}); {_REMEDY}, then start "
            "the same command again"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
