"""Patterns of paths, ``photos/**/*.jpg`` and ``shards-{000000..000012}.tar``."""

import fnmatch
import glob
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pcd_hub.data.sources.archives.tars import is_tar
from pcd_hub.data.sources.files import ImageFiles, walk
from pcd_hub.data.sources.other_files import OtherFiles, is_image
from pcd_hub.data.sources.uris import exists, local_path
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

_BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MAX_SHARDS = 100_000


def expand_braces(text: str) -> list[str]:
    """Expand ``{000000..000012}`` to all numbers with as many digits.

    Raises:
        DataError: If there are too many, or the first is larger than the last.
    """
    found = _BRACES.search(text)
    if found is None or exists(local_path(text)):
        return [text]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MAX_SHARDS:
        raise DataError(
            f"{text}: expected a range with at most {_MAX_SHARDS} files, the first number before "
            "the last"
        )
    numbers = (str(number).zfill(len(found[1])) for number in range(first, last + 1))
    before, after = text[: found.start()], text[found.end() :]
    return [part for number in numbers for part in expand_braces(f"{before}{number}{after}")]


def is_pattern(text: str) -> bool:
    """Check whether a path is a pattern (``*``, ``?`` or ``[``) and no such path exists."""
    return glob.has_magic(text) and not exists(local_path(text))


def match_pattern(pattern: str) -> ImageFiles | list[str]:
    """Find the images that match; if there are none, the archives, then the folders.

    ``**`` matches folders at any depth. Names that begin with a dot are skipped, and links are
    followed as in :mod:`pcd_hub.data.sources.files`.

    Raises:
        DataError: If nothing matches.
    """
    root, rest = _split(str(local_path(pattern)))
    paths = sorted(_match(root, rest))
    if images := [path for path in paths if is_image(path)]:
        others = (str(root / path) for path in paths if not is_image(path))
        if folders := [place for place in others if os.path.isdir(place)]:
            log.warning(
                "%s also matches %d folder(s), which are not read (%s); '**' matches at any depth",
                *(pattern, len(folders), folders[0]),
            )
        return ImageFiles(images, root=root)
    places = [str(root / path) for path in paths]
    if archives := [place for place in places if is_tar(place) or place.endswith(".zip")]:
        return archives
    if folders := [place for place in places if os.path.isdir(place)]:
        return folders
    others = OtherFiles()
    for place in places:
        others.add(place)
    found = others.describe() or f"{len(paths)} other files match" if paths else "nothing matches"
    raise DataError(
        f"no image matches {pattern} ({found}): expected a pattern such as 'photos/**/*.jpg', in "
        "quotes"
    )


def _split(pattern: str) -> tuple[Path, str]:
    """Split a pattern into the folder before its first special character, and the rest."""
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path("/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")), "/".join(
        parts[first:]
    )


def _match(root: Path, pattern: str) -> Iterator[str]:
    if not root.is_dir():
        return
    if "**" not in pattern.split("/"):
        yield from glob.iglob(pattern, root_dir=root)
        return
    parts = pattern.split("/")
    yield from (path for path in walk(root) if _fits(path.split("/"), parts))


def _fits(path: list[str], pattern: list[str]) -> bool:
    """Check whether the parts of a path fit those of a pattern; ``**`` is any number of them."""
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return not rest or any(_fits(path[start:], rest) for start in range(len(path)))
    return bool(path) and fnmatch.fnmatchcase(path[0], first) and _fits(path[1:], rest)
