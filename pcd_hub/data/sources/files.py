"""Find and fingerprint image files below a folder or in a list, the same way for every command.

Symbolic links to folders are followed, each folder is read once (so links may form a cycle), names
that begin with a dot are skipped (``.ipynb_checkpoints``, ``._a.jpg``), and a folder that cannot be
listed is an error.
"""

import codecs
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from pcd_hub.data.decoding import ResultT, decode
from pcd_hub.data.sources.names import PackedNames
from pcd_hub.data.sources.other_files import OtherFiles, image_suffixes, is_image
from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # starts with the UTF-16 mark
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF32_BE: "utf-32",
}


class ImageFiles(ImageSource):
    """Image files on this machine.

    Args:
        paths: Their paths, relative to ``root`` or absolute.
        root: Folder of the relative paths.
    """

    def __init__(self, paths: Iterable[str], *, root: Path) -> None:
        self._paths = PackedNames(paths)
        self.root = root

    @classmethod
    def from_folder(cls, folder: Path) -> "ImageFiles":
        """Open every image below ``folder``, sorted by path."""
        if not is_dir(folder):
            raise DataError(
                f"no folder {folder}: expected a folder of images, a .txt list, a .zip, .tar "
                "shards, or a source that starts with scenes: hf-disk: hf: or hf-stream:"
            )
        return cls(find_image_paths(folder), root=folder)

    @classmethod
    def from_list(cls, file: Path) -> "ImageFiles":
        """Open the paths listed in ``file``, one per line, in its order."""
        if not is_file(file):
            raise DataError(
                f"no list {file}: expected a text file with one image path per line, relative to "
                "the list's folder"
            )
        paths = [os.path.expanduser(line) for line in read_lines(file)]
        if not paths:
            raise DataError(f"{file} lists no image: expected one path per line")
        return cls(_without_other_files(paths, file), root=file.parent)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Decode image ``index`` by ``to_image``; see ``ImageSource.read``."""
        path = self.root / self._paths[index]
        return decode(path, str(path), to_image)

    def name(self, index: int) -> str:
        """Return the path of image ``index``, relative to the folder."""
        return self._paths[index]

    def path(self, index: int) -> Path:
        """Return the file of image ``index``."""
        return self.root / self._paths[index]

    def paths(self) -> list[str]:
        """Return all paths, relative to the folder."""
        return list(self._paths)

    def fingerprint(self) -> str:
        """Fingerprint all paths and the sizes of a sample of files, without reading any file."""
        sizes = hash_sizes(len(self), lambda index: self.root / self._paths[index])
        paths = hash_names(self._paths)
        return f"{len(self)} files, paths sha256 {paths}, sizes sha256 {sizes}"


def _without_other_files(paths: list[str], file: Path) -> list[str]:
    """Return the paths of a list without videos and archives, which are logged.

    Raises:
        DataError: If no other path remains.
    """
    others = OtherFiles()
    kept = [path for path in paths if not others.add(path)]
    if not kept:
        raise DataError(f"{file} lists no image: {others.describe()}")
    others.warn(str(file))
    return kept


def find_image_paths(folder: Path) -> list[str]:
    """Find the images below ``folder``, at any depth.

    Returns:
        Sorted paths relative to ``folder``, with ``/`` as separator.

    Raises:
        DataError: If there is no image, or a folder cannot be listed.
    """
    paths, others = [], OtherFiles()
    for path in walk(folder):
        if is_image(path):
            paths.append(path)
        else:
            others.add(f"{folder}/{path}")
    if not paths:
        expected = f"expected a file with one of the suffixes {' '.join(sorted(image_suffixes()))}"
        raise DataError(f"{folder} has no image at any depth: {others.describe() or expected}")
    others.warn(str(folder))
    return sorted(paths)


def walk(folder: Path) -> Iterator[str]:
    """Yield the visible files below ``folder``, relative to it, and log broken links.

    Raises:
        DataError: If a folder cannot be listed.
    """
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise_cannot_list):
        inode = _inode(parent)
        folders[:] = [] if inode in visited else sorted(filter(_is_visible, folders))
        if inode in visited:
            continue
        visited.add(inode)
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in filter(_is_visible, files):
            if not is_image(name) and not os.path.exists(path := os.path.join(parent, name)):
                log.warning("%s is a broken link; the images behind it, if any, are missing", path)
            else:
                yield name if below == "." else f"{below}/{name}"


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _inode(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        _raise_cannot_list(error)
    return status.st_dev, status.st_ino


def _raise_cannot_list(error: OSError) -> NoReturn:
    raise DataError(
        f"the folder {error.filename} cannot be listed ({error.strerror or error}); make it "
        "readable or move it"
    ) from error


def list_subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the visible folders and links to folders in ``folder``.

    Raises:
        DataError: If ``folder`` cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(each.name for each in entries if each.is_dir() and _is_visible(each.name))
    except OSError as error:
        _raise_cannot_list(error)


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file that are not blank.

    The encoding is UTF-8, or that of its byte order mark (UTF-8, UTF-16, UTF-32).

    Raises:
        DataError: If it cannot be read or decoded; the message names the line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"the list {file} cannot be read ({error.strerror or error}); make it readable"
        ) from error
    return decode_lines(content, str(file))


def decode_lines(content: bytes, file: str) -> list[str]:
    """Decode the lines of a text file that are not blank; see :func:`decode_numbered`."""
    return [line for _, line in decode_numbered(content, file)]


def decode_numbered(content: bytes, file: str) -> list[tuple[int, str]]:
    """Decode the lines of a text file that are not blank, with their numbers from 1.

    See :func:`read_lines` for the encoding.

    Raises:
        DataError: If they cannot be decoded; the message names the line.
    """
    marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark))
    encoding = next(marks, "utf-8")
    try:
        lines = list(io.StringIO(content.decode(encoding), newline=None))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].decode(encoding, "ignore").count("\n") + 1
        expected = encoding.removesuffix("-sig").upper()
        raise _encoding_error(file, line, f"is not {expected}") from error
    for number, line in enumerate(lines, 1):
        if "\0" in line:  # UTF-16 without a mark
            raise _encoding_error(file, number, "contains a NUL character")
    numbered = enumerate(lines, 1)
    return [(number, line.removesuffix("\n")) for number, line in numbered if line.strip()]


def _encoding_error(file: str, line: int, fault: str) -> DataError:
    return DataError(f"{file}, line {line} {fault}: expected UTF-8; save the list as UTF-8")


MAX_STATS = 4096
"""Files whose size a fingerprint reads: milliseconds on a disk, seconds over a network."""


def hash_names(names: Iterable[str]) -> str:
    """Return the first half of the SHA-256 over all names, in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def hash_sizes(count: int, path_of: Callable[[int], str | os.PathLike[str]]) -> str:
    """Hash the sizes in bytes of at most ``MAX_STATS`` files, spread evenly.

    Sizes rather than times, so a copy on another machine has the same hash. A file that changes
    without changing its size, or that is not among those read, is not noticed.

    Args:
        count: Number of files.
        path_of: Returns the path of a file, given its index.
    """
    indices = np.linspace(0, count - 1, min(count, MAX_STATS)).round().astype(np.int64)
    return hash_names(str(_file_size(path_of(index))) for index in indices.tolist())


def _file_size(path: str | os.PathLike[str]) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # broken images are counted when they are read
        return -1
