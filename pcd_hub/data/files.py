"""Finds image files: below a folder or in a list, by one rule for every recipe.

Linked folders are followed, each folder is read once (so links may lead round in a circle), names
that begin with a dot are skipped (``.ipynb_checkpoints``, ``._a.jpg``), and a folder that cannot be
listed is an error.
"""

import codecs
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from pcd_hub.data.decoding import ResultT, as_rgb, decode
from pcd_hub.data.fingerprint import names_digest, sizes_digest
from pcd_hub.data.uris import is_dir, is_file
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like the next
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF32_BE: "utf-32",
}


class ImageFiles:
    """Image files on this machine."""

    def __init__(self, paths: list[str], *, root: Path) -> None:
        self._paths = np.asarray(paths, np.bytes_ if all(p.isascii() for p in paths) else np.str_)
        self._root = root

    @classmethod
    def from_folder(cls, folder: Path) -> "ImageFiles":
        """Open every image below ``folder``, sorted by path."""
        if not is_dir(folder):
            raise DataError(
                f"no folder {folder}; give a folder of images, a .txt list, "
                "or one of scenes: hf-disk: hf:"
            )
        return cls(image_paths(folder), root=folder)

    @classmethod
    def from_list(cls, file: Path) -> "ImageFiles":
        """Open the paths in ``file``, one a line, in its order."""
        if not is_file(file):
            raise DataError(
                f"no list {file}; write one image path a line, relative to the list's folder"
            )
        paths = [os.path.expanduser(line) for line in read_lines(file)]
        if not paths:
            raise DataError(f"{file} names no image; write one path a line")
        return cls(paths, root=file.parent)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image.Image:
        return self.read(index, as_rgb)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """See ``ImageSource.read``."""
        path = self._root / _text(self._paths[index])
        return decode(path, str(path), to_image)

    def paths(self) -> list[str]:
        """Relative to the folder."""
        return [_text(path) for path in self._paths]

    def fingerprint(self) -> str:
        """Over all paths, and the sizes of a sample; the pixels are not read."""
        sizes = sizes_digest(len(self), lambda index: self._root / _text(self._paths[index]))
        paths = names_digest(map(_text, self._paths))
        return f"{len(self)} files, paths sha256 {paths}, sizes sha256 {sizes}"


def _text(path: bytes | str) -> str:
    return path.decode() if isinstance(path, bytes) else str(path)


def image_paths(folder: Path) -> list[str]:
    """Find the images below ``folder``, at any depth.

    Returns:
        Sorted paths relative to ``folder``, with ``/``.

    Raises:
        DataError: If there is none, or a folder cannot be listed.
    """
    paths = sorted(_walk(folder))
    if not paths:
        raise DataError(
            f"{folder} holds no image ({' '.join(sorted(IMAGE_SUFFIXES))}), at any depth"
        )
    return paths


def _walk(folder: Path) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_list):
        status = _status(parent)
        folders[:] = [] if status in seen else sorted(filter(_is_visible, folders))
        if status in seen:
            continue
        seen.add(status)
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in filter(_is_visible, files):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield name if below == "." else f"{below}/{name}"
            elif not os.path.exists(path := os.path.join(parent, name)):
                log.warning("%s links to nothing; if it was a folder, its images are missing", path)


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _status(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        _cannot_list(error)
    return status.st_dev, status.st_ino


def _cannot_list(error: OSError) -> NoReturn:
    raise DataError(
        f"the folder {error.filename} cannot be listed ({error.strerror or error}); make it "
        "readable, or move it away"
    ) from error


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in ``folder``, sorted; links count.

    Raises:
        DataError: If it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(each.name for each in entries if each.is_dir() and _is_visible(each.name))
    except OSError as error:
        _cannot_list(error)


def split_folder(parent: Path, split: str) -> Path:
    """Return the folder of a split.

    Raises:
        DataError: If it is not there; the message lists those that are.
    """
    folder = parent / split
    if not is_dir(folder):
        there = subfolders(parent) if is_dir(parent) else []
        raise DataError(
            f"there is no {folder}; {parent} has {', '.join(there[:10]) or 'no splits'}"
        )
    return folder


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file that are not blank.

    It is UTF-8, or what its byte order mark says (UTF-8, UTF-16, UTF-32).

    Raises:
        DataError: If it cannot be read, or is neither; then the message names the line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"the list {file} cannot be read ({error.strerror or error}); make it readable"
        ) from error
    marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark))
    encoding = next(marks, "utf-8")
    try:
        lines = list(io.StringIO(content.decode(encoding), newline=None))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise _not_text(file, line, f"is not {encoding.removesuffix('-sig').upper()}") from error
    for number, line in enumerate(lines, 1):
        if "\0" in line:  # as UTF-16 without a mark has
            raise _not_text(file, number, "holds a NUL character")
    return [line.removesuffix("\n") for line in lines if line.strip()]


def _not_text(file: Path, line: int, fault: str) -> DataError:
    return DataError(f"{file}, line {line} {fault}; save the list as UTF-8")
