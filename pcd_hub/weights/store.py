"""The local store: finished weights by name, each a folder with the layout of its Hub repository.

::

    <PCD_HUB_HOME>/resnet18.pcd -> .versions/resnet18.pcd/<time>-<random>/
                                       model.safetensors  config.json  pcd_manifest.json

A weight is written beside the others and appears under its name by one atomic rename of a link, so
that readers see the old one or the new one, whole; a crash at any moment leaves the old one. A
plain folder under a name works too (a bundle that was copied there). Every load checks size and
sha256 against the manifest.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from pcd_hub.errors import WeightError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MANIFEST_FILE = "pcd_manifest.json"
MANIFEST_SCHEMA = 1

_NAME = re.compile(r"[a-z0-9_]{1,100}\.pcd(_[a-z0-9_]{1,60})?")
_VERSIONS = ".versions"
_KEPT_VERSIONS = 3
_GRACE_SECONDS = 600


def home() -> Path:
    """The store's folder: ``PCD_HUB_HOME``, or ``pcd_hub`` in the user's cache folder."""
    if named := os.environ.get("PCD_HUB_HOME"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pcd_hub"


def enabled() -> bool:
    """False if ``PCD_HUB_LOCAL=0``: then no local weight is ever used."""
    return os.environ.get("PCD_HUB_LOCAL", "1") != "0"


def where(name: str) -> Path | None:
    """The folder of the local weight ``name`` (``resnet18.pcd``) as it stands now, or None.

    Raises:
        WeightError: If ``name`` is not ``ARCH.pcd`` or ``ARCH.pcd_WHAT``.
    """
    folder = (home() / check_name(name)).resolve()
    return folder if enabled() and (folder / WEIGHTS_FILE).is_file() else None


def find_weights(name: str) -> Path | None:
    """The verified weights file of ``name``, or None if the store has none.

    Raises:
        WeightError: If it is there but damaged.
    """
    if not _NAME.fullmatch(name) or (folder := where(name)) is None:
        return None
    verify(folder)
    return folder / WEIGHTS_FILE


def add(name: str, export: Path) -> Path:
    """Copy the finished export folder into the store under ``name``.

    Returns the folder a reader will see. The weight that had the name before is kept as a version,
    of which the last three stay.

    Raises:
        WeightError: If the name is malformed, the export is damaged, or a plain folder holds the
            name.
    """
    verify(export)
    link = home() / check_name(name)
    if link.is_dir() and not link.is_symlink():
        raise WeightError(
            f"{link} is a plain folder, not made by the store; move it away to save {name} there"
        )
    versions = home() / _VERSIONS / name
    versions.mkdir(parents=True, exist_ok=True)
    folder = _copied(export, versions)
    _touch(link)
    _point(link, folder)
    _sweep(versions, current=folder)
    return folder


def verify(folder: Path) -> None:
    """Check every file that the manifest of ``folder`` lists: present, right size, right sha256.

    Raises:
        WeightError: Naming the file, what was found and what to do.
    """
    for entry in read_manifest(folder)["files"]:
        path = folder / entry["path"]
        remedy = "the copy is damaged: delete the folder and export or fetch it again"
        if not path.is_file():
            raise WeightError(f"{path} is missing; {remedy}")
        if path.stat().st_size != entry["size"]:
            raise WeightError(
                f"{path} has {path.stat().st_size} bytes, "
                f"its manifest says {entry['size']}; {remedy}"
            )
        digest = sha256(path)
        if digest != entry["sha256"]:
            raise WeightError(
                f"{path} has sha256 {digest[:12]}, "
                f"its manifest says {entry['sha256'][:12]}; {remedy}"
            )


def write_manifest(folder: Path, record: dict[str, Any]) -> None:
    """Write ``pcd_manifest.json``: size and sha256 of every other file, and the weight's record."""
    files = [
        {"path": path.name, "size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE
    ]
    manifest = {"schema": MANIFEST_SCHEMA, "files": files, "record": record}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder``.

    Raises:
        WeightError: If it is missing or not of the known schema.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        files = {entry["path"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]}
        known = manifest["schema"] == MANIFEST_SCHEMA and WEIGHTS_FILE in files
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightError(
            f"{path} is missing or no manifest ({type(error).__name__}); export the weight again"
        ) from error
    if not known or any("/" in name or name.startswith(".") for name in files):
        raise WeightError(
            f"{path} is not of schema {MANIFEST_SCHEMA} with {WEIGHTS_FILE}; "
            "export the weight again"
        )
    return manifest


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(name: str) -> str:
    """Return ``name`` if it may name a weight.

    Raises:
        WeightError: If it is not ``ARCH.pcd`` or ``ARCH.pcd_WHAT``.
    """
    if not _NAME.fullmatch(name):
        raise WeightError(
            f"'{name}' is no weight's name; use ARCH.pcd or ARCH.pcd_WHAT, as resnet18.pcd_mydata"
        )
    return name


def _copied(export: Path, versions: Path) -> Path:
    """A complete copy, on disk, under a name that nobody else uses."""
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=versions))
    folder.chmod(0o755)
    for entry in [*read_manifest(export)["files"], {"path": MANIFEST_FILE}]:
        target = folder / entry["path"]
        shutil.copyfile(export / entry["path"], target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
    verify(folder)
    return folder


def _point(link: Path, folder: Path) -> None:
    """Make ``link`` lead to ``folder``, atomically."""
    temporary = link.with_name(f".{link.name}.{folder.name}")
    temporary.symlink_to(folder.relative_to(link.parent))
    temporary.replace(link)


def _touch(link: Path) -> None:
    """Note when the present version was superseded, for the grace period of readers."""
    if link.exists():
        os.utime(link.resolve())


def _sweep(versions: Path, *, current: Path) -> None:
    """Remove versions beyond the last few, but none that a reader may just have been pointed to."""
    others = sorted((p for p in versions.iterdir() if p != current), key=_superseded)
    for old in others[:-_KEPT_VERSIONS]:
        if time.time() - _superseded(old) > _GRACE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


def _superseded(version: Path) -> float:
    """When it was last the present one; 0 if another writer has just removed it."""
    try:
        return version.stat().st_mtime
    except FileNotFoundError:
        return 0.0
