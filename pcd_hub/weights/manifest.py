"""``pcd_manifest.json``: size and sha256 of a weight's other files, and its record."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pcd_hub.errors import WeightError
from pcd_hub.files.strict_json import shown
from pcd_hub.weights.layout import MANIFEST_FILE, MANIFEST_SCHEMA, WEIGHTS_FILE
from pcd_hub.weights.safety import MAX_JSON_BYTES, check_manifest

_REMEDY = "the copy is damaged: get it again, by `pcd-hub fetch` or from the run's export"

Read = TypeVar("Read")


def write_manifest(folder: Path, record: dict[str, Any]) -> None:
    """Write the manifest of every file that lies in ``folder`` now."""
    manifest = {"schema": MANIFEST_SCHEMA, "files": file_entries(folder), "record": record}
    write_json(folder / MANIFEST_FILE, manifest)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as the JSON files of a weight are written."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def file_entries(folder: Path) -> list[dict[str, Any]]:
    """Path, size and sha256 of each file in ``folder`` but the manifest."""
    return [
        {"path": path.name, "size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE
    ]


def read_manifest(folder: Path, *, pinned: str | None = None) -> dict[str, Any]:
    """The manifest of ``folder``.

    Args:
        folder: Of one weight.
        pinned: The sha256 that the manifest must have.

    Raises:
        WeightError: If it is missing, not of the known schema, or not the one that was pinned.
    """
    path = folder / MANIFEST_FILE
    try:
        raw = read_plain(path, most=MAX_JSON_BYTES)
    except OSError as error:
        raise _unreadable(shown(str(path)), error, "export the weight again") from error
    if pinned and pinned != hashlib.sha256(raw).hexdigest():
        raise WeightError(
            f"{path} has not the sha256 {pinned[:12]} that was pinned; it is not the weight that "
            "was meant, or was changed since it was fetched"
        )
    return check_manifest(raw, what=str(path))


def read_plain(path: Path, *, most: int) -> bytes:
    """A plain file of at most ``most`` bytes; of a longer one a byte more, which tells it.

    Raises:
        OSError: If it is not there, cannot be read, or is no plain file.
    """
    if not path.is_file():  # a pipe would be waited for, a device never end
        raise FileNotFoundError(f"{path} is no plain file")
    with path.open("rb") as file:
        return file.read(most + 1)


def weights_sha256(folder: Path) -> str:
    """Of the weights file, as the manifest states it.

    Raises:
        WeightError: As :func:`read_manifest`.
    """
    files = read_manifest(folder)["files"]
    return next(entry["sha256"] for entry in files if entry["path"] == WEIGHTS_FILE)


def verify(folder: Path) -> None:
    """Check every file that the manifest of ``folder`` lists: present, right size, right sha256.

    Raises:
        WeightError: Naming the file, what was found and what to do.
    """
    for entry in read_manifest(folder)["files"]:
        check_listed(folder, entry)


def check_listed_size(folder: Path, entry: dict[str, Any]) -> None:
    """Hold a file's size against its entry in the manifest; its bytes are not read.

    Raises:
        WeightError: If it is missing, no plain file, or of another size.
    """
    _of_listed_size(folder, entry, Path.stat)


def check_listed(folder: Path, entry: dict[str, Any]) -> None:
    """Hold a file against its entry in the manifest, without keeping it in memory.

    Raises:
        WeightError: If it is missing, unreadable, of another size, or its sha256 differs.
    """
    _check_digest(_of_listed_size(folder, entry, sha256), folder, entry)


def read_listed(folder: Path, entry: dict[str, Any]) -> bytes:
    """The bytes of a file that the manifest lists.

    Raises:
        WeightError: As :func:`check_listed`.
    """
    raw = _of_listed_size(folder, entry, Path.read_bytes)
    _check_digest(hashlib.sha256(raw).hexdigest(), folder, entry)
    return raw


def _of_listed_size(folder: Path, entry: dict[str, Any], read: Callable[[Path], Read]) -> Read:
    path = folder / entry["path"]
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(path)
        size = path.stat().st_size
        if size != entry["size"]:
            raise WeightError(
                f"{path} has {size} bytes, its manifest says {entry['size']}; {_REMEDY}"
            )
        return read(path)
    except OSError as error:
        raise _unreadable(str(path), error, _REMEDY) from error


def _unreadable(path: str, error: OSError, remedy: str) -> WeightError:
    if isinstance(error, PermissionError):
        return WeightError(f"{path} cannot be read: {error.strerror}; ask its owner for the right")
    return WeightError(f"{path} is missing ({type(error).__name__}); {remedy}")


def _check_digest(digest: str, folder: Path, entry: dict[str, Any]) -> None:
    if digest != entry["sha256"]:
        raise WeightError(
            f"{folder / entry['path']} has sha256 {digest[:12]}, its manifest says "
            f"{entry['sha256'][:12]}; {_REMEDY}"
        )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
