"""The folders of caches: where they are, what is in them, and how they are removed.

::

    <place>/<architecture>-<hash>/
        cache.json      what the cache depends on
        records.bin  checksums.bin  lock
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcd_hub.errors import ConfigError
from pcd_hub.files.read import read_bounded
from pcd_hub.files.strict_json import parse_json, printable
from pcd_hub.files.writable import free_space
from pcd_hub.train.teacher.cache.store import CHECKSUMS, LOCK, RECORDS
from pcd_hub.weights.store import expanded, home

FACTS = "cache.json"
_MAX_BYTES = 2**20
OUTPUT = "teacher_output"
"""Key of the teacher's output for noise images in the facts."""


@dataclass(frozen=True, kw_only=True)
class CacheFolder:
    """A cache on the disk."""

    path: Path
    teacher: str
    """Architecture of the teacher; "?" if it is not known."""
    images: int
    """Images of the source."""
    complete: float
    """Share of the records that are written."""
    num_bytes: int
    """Space on the disk."""


def default_place() -> Path:
    """Return the folder of all caches, inside the local store."""
    return home() / "teacher_cache"


def place_of(setting: str) -> Path:
    """Return the folder of all caches for ``--teacher.cache``, which is ``auto`` or a folder."""
    return default_place() if setting == "auto" else expanded(setting)


def list_caches(place: Path) -> list[CacheFolder]:
    """Return the caches in a folder, by name.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        folders = sorted(path for path in place.iterdir() if _is_cache(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot read {place}: {error.strerror or error}") from error
    return [_describe(folder) for folder in folders]


def remove_cache(place: Path, name: str) -> list[CacheFolder]:
    """Remove one cache, or all of them if the name is ``all``; return what was removed.

    A run that uses it continues with the removed files, which take space until it ends.

    Raises:
        ConfigError: If there is no such cache, or it cannot be removed.
    """
    found = list_caches(place)
    chosen = [cache for cache in found if name in ("all", cache.path.name)]
    if not chosen and name != "all":
        names = ", ".join(cache.path.name for cache in found) or "none"
        raise ConfigError(f"no cache {printable(name)} in {place}, which has {names}")
    for cache in chosen:
        try:
            for file in (CHECKSUMS, RECORDS, LOCK, FACTS):
                (cache.path / file).unlink(missing_ok=True)
            cache.path.rmdir()
        except OSError as error:
            raise ConfigError(
                f"cannot remove {cache.path}: {error.strerror or error}; remove it by hand"
            ) from error
    return chosen


def free_bytes(place: Path) -> int:
    """Return the free space of the disk of a folder, which need not exist.

    Raises:
        ConfigError: If it cannot be determined.
    """
    try:
        return free_space(place)
    except OSError as error:
        raise ConfigError(
            f"--teacher.cache: cannot read {place} ({error.strerror or error}); name another folder"
        ) from error


def complete_bytes(folder: Path, *, record_bytes: int) -> int:
    """Return the bytes of the complete records of a cache, which need not exist."""
    try:
        checksums = np.fromfile(folder / CHECKSUMS, "<u4")
    except OSError:
        return 0
    return int(np.count_nonzero(checksums)) * (record_bytes + 4)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return the facts of a cache; None if they are damaged or cannot be read."""
    try:
        raw = read_bounded(folder / FACTS, _MAX_BYTES)
        facts = parse_json(raw, what=FACTS, max_bytes=_MAX_BYTES)
    except (OSError, ValueError, RecursionError):
        return None
    output = facts.get(OUTPUT) if isinstance(facts, dict) else None
    if not isinstance(output, list) or not all(isinstance(one, float) for one in output):
        return None
    return facts


def _is_cache(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and (path / FACTS).is_file()


def _describe(folder: Path) -> CacheFolder:
    facts: Any = read_facts(folder) or {}
    try:
        checksums = np.fromfile(folder / CHECKSUMS, "<u4")
        complete = float((checksums != 0).mean()) if len(checksums) else 0.0
    except OSError:
        complete = 0.0
    try:
        teacher, images = str(facts["teacher"]["architecture"]), int(facts["images"]["number"])
    except (KeyError, TypeError, ValueError):
        teacher, images = "?", 0
    sizes = [(folder / name) for name in (RECORDS, CHECKSUMS, FACTS)]
    return CacheFolder(
        path=folder,
        teacher=printable(teacher),
        images=images,
        complete=complete,
        num_bytes=sum(_disk_bytes(path) for path in sizes if path.is_file()),
    )


def _disk_bytes(path: Path) -> int:
    """Return the space of a file that may be sparse."""
    found = path.stat()
    return getattr(found, "st_blocks", -(-found.st_size // 512)) * 512
