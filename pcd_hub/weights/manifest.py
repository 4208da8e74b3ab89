"""``pcd_manifest.json``: a weight's record, and the size and sha256 of its other files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pcd_hub.errors import WeightError, pip_install
from pcd_hub.files.read import read_bounded
from pcd_hub.files.strict_json import shown
from pcd_hub.files.write import atomic_write
from pcd_hub.weights import shipped
from pcd_hub.weights.layout import MANIFEST_FILE, MANIFEST_SCHEMA, WEIGHTS_FILE
from pcd_hub.weights.safety import MAX_JSON_BYTES, check_manifest

_REMEDY = "the copy is damaged: get it again with `pcd-hub fetch`, or from the run's export"
_REINSTALL = (
    f"the package is damaged; repair it: {pip_install(options='--force-reinstall --no-deps ')}"
)

Read = TypeVar("Read")


def write_manifest(folder: Path, record: dict[str, Any]) -> None:
    """Write the manifest of all files in ``folder``."""
    manifest = {"schema": MANIFEST_SCHEMA, "files": file_entries(folder), "record": record}
    write_json(folder / MANIFEST_FILE, manifest)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON without NaN or infinity."""
    atomic_write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def files_in(folder: Path) -> dict[str, Path]:
    """Return all files below ``folder`` by relative path, sorted."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path for name, path in sorted(found.items()) if path.is_file()}


def file_entries(folder: Path) -> list[dict[str, Any]]:
    """Return path, size and sha256 of each file in ``folder`` except the manifest."""
    return [
        {"path": name, "size": path.stat().st_size, "sha256": sha256(path)}
        for name, path in files_in(folder).items()
        if name != MANIFEST_FILE
    ]


def record_sha256(record: dict[str, Any]) -> str:
    """Return the sha256 of a record's canonical JSON, which ``config.json`` and the card cite."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def record_pointer(record: dict[str, Any]) -> dict[str, str]:
    """Return the reference to the record that ``config.json`` contains."""
    return {"record": MANIFEST_FILE, "record_sha256": record_sha256(record)}


def read_manifest(folder: Path, *, pinned: str | None = None) -> dict[str, Any]:
    """Read and check the manifest of a weight's folder.

    Args:
        folder: The weight's folder.
        pinned: Expected sha256 of the manifest.

    Raises:
        WeightError: If it is missing or invalid, has a newer schema, or is not the pinned one.
    """
    path = folder / MANIFEST_FILE
    try:
        raw = read_bounded(path, MAX_JSON_BYTES)
    except OSError as error:
        remedy = _REINSTALL if _is_shipped(folder) else "export the weight again"
        raise _unreadable(shown(str(path)), error, remedy) from error
    except ValueError as error:
        raise WeightError(str(error)) from error
    if pinned and pinned != (found := hashlib.sha256(raw).hexdigest()):
        raise WeightError(
            f"{path} has sha256 {found[:12]}, expected {pinned[:12]}, which was pinned; it is not "
            "the weight you mean, or was changed after it was fetched"
        )
    return check_manifest(raw, what=str(path))


def weights_sha256(folder: Path) -> str:
    """Return the sha256 of the weights file according to the manifest.

    Raises:
        WeightError: If the manifest is missing or invalid.
    """
    files = read_manifest(folder)["files"]
    return next(entry["sha256"] for entry in files if entry["path"] == WEIGHTS_FILE)


def verify(folder: Path) -> None:
    """Verify the size and sha256 of every file in the manifest of ``folder``.

    Raises:
        WeightError: If a file is missing or differs; the message names the first one.
    """
    for entry in read_manifest(folder)["files"]:
        check_listed(folder, entry)


def check_listed(folder: Path, entry: dict[str, Any]) -> None:
    """Verify a file against its entry in the manifest, without loading all of it into memory.

    Raises:
        WeightError: If it is missing or unreadable, or its size or sha256 differs.
    """
    _check_digest(_of_listed_size(folder, entry, sha256), folder, entry)


def read_listed(folder: Path, entry: dict[str, Any]) -> bytes:
    """Return the verified bytes of a file in the manifest.

    Raises:
        WeightError: If it is missing or unreadable, or its size or sha256 differs.
    """
    raw = _of_listed_size(folder, entry, Path.read_bytes)
    _check_digest(hashlib.sha256(raw).hexdigest(), folder, entry)
    return raw


def _of_listed_size(folder: Path, entry: dict[str, Any], read: Callable[[Path], Read]) -> Read:
    path = folder / entry["path"]
    try:
        if not path.is_file():  # a pipe would block
            raise FileNotFoundError(path)
        size = path.stat().st_size
        if size != entry["size"]:
            raise WeightError(
                f"{path} has {size} bytes, expected {entry['size']}; {_remedy(folder)}"
            )
        return read(path)
    except OSError as error:
        raise _unreadable(str(path), error, _remedy(folder)) from error


def _unreadable(path: str, error: OSError, remedy: str) -> WeightError:
    if isinstance(error, PermissionError):
        return WeightError(f"{path} cannot be read: {error.strerror}; ask its owner")
    return WeightError(f"{path} is missing ({type(error).__name__}); {remedy}")


def _check_digest(digest: str, folder: Path, entry: dict[str, Any]) -> None:
    if digest != entry["sha256"]:
        raise WeightError(
            f"{folder / entry['path']} has sha256 {digest[:12]}, expected "
            f"{entry['sha256'][:12]}; {_remedy(folder)}"
        )


def _remedy(folder: Path) -> str:
    return _REINSTALL if _is_shipped(folder) else _REMEDY


def _is_shipped(folder: Path) -> bool:
    return shipped.FOLDER in folder.parents


def sha256(path: Path) -> str:
    """Return the sha256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
