"""Images in archives, read by position: nothing is extracted, and no name is used as a path."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pcd_hub.data.decoding import BrokenImageError, ResultT, decode, describe_error
from pcd_hub.data.sources.names import PackedNames
from pcd_hub.data.sources.other_files import OtherFiles, is_image
from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.data.sources.remote import is_remote, read_remote, shown
from pcd_hub.errors import DataError

MAX_IMAGE_BYTES = 2**30
"""Largest file read from an archive; 89 megapixels of 16-bit RGBA are smaller."""
ENCRYPTED = -1
"""``Member.method`` of an encrypted file."""
_LARGEST = 2**62


class Member(NamedTuple):
    """A file in an archive."""

    archive: int
    """Index of the archive."""
    offset: int
    stored: int
    """Bytes in the archive."""
    size: int
    """Bytes after decompression."""
    method: int
    """Compression method of a zip file; 0 for none."""
    crc: int


_ROW = np.dtype(
    [
        ("archive", np.uint32),
        ("offset", np.int64),
        ("stored", np.int64),
        ("size", np.int64),
        ("method", np.int16),
        ("crc", np.uint32),
    ]
)

ReadMember = Callable[[Callable[[int, int], bytes], Member], bytes]
"""Reads a member, given a function that reads (offset, length) of its archive."""


class ArchiveImages(ImageSource):
    """The images of one or more archives, in their order.

    Args:
        archives: Paths or URLs.
        names: Name of each image in its archive.
        rows: A :class:`Member` for each image.
        read_member: How the archives store their files.
    """

    def __init__(
        self,
        archives: Sequence[str],
        names: PackedNames,
        rows: NDArray[Any],
        *,
        read_member: ReadMember,
    ) -> None:
        self.archives = tuple(archives)
        self._names = names
        self._rows = rows
        self._read_member = read_member

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Decode image ``index`` by ``to_image``; see ``ImageSource.read``."""
        member = Member(*self._rows[index].item())
        archive = self.archives[member.archive]
        label = shown(archive) if is_remote(archive) else archive
        name = f"{label}/{printable(self._names[index])}"
        try:
            content = self._content(archive, member)
        except Exception as error:  # a damaged archive, or a lost connection
            raise BrokenImageError(name, describe_error(error)) from error
        return decode({"bytes": content, "path": None}, name, to_image)

    def _content(self, archive: str, member: Member) -> bytes:
        if max(member.size, member.stored) > MAX_IMAGE_BYTES:
            raise ValueError(f"{member.size} bytes: expected at most {MAX_IMAGE_BYTES}")
        content = self._read_member(
            lambda offset, length: read_range(archive, offset, length), member
        )
        if not content:
            raise ValueError("the file is empty")
        return content

    def count_methods_except(self, *known: int) -> int:
        """Count the images with another compression method than ``known``."""
        return int((~np.isin(self._rows["method"], known)).sum())

    def name(self, index: int) -> str:
        """Return the archive's file name and the name of image ``index`` in it."""
        archive = self.archives[int(self._rows["archive"][index])]
        return f"{base_name(archive)}/{self._names[index]}"

    def fingerprint(self) -> str:
        """Fingerprint the names and sizes of all images, which the archives list."""
        names = hashlib.sha256("\0".join(self._names).encode(errors="surrogateescape"))
        sizes = hashlib.sha256(self._rows["size"].astype("<i8").tobytes())
        return (
            f"{len(self)} files in archives, names sha256 {names.hexdigest()[:16]}, "
            f"sizes sha256 {sizes.hexdigest()[:16]}"
        )


class Listing:
    """Collects the images among the files of archives.

    Args:
        place: Name of the archives in messages.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._others = OtherFiles()
        self._names: list[str] = []

    def is_image(self, name: str) -> bool:
        """Check whether a file is a visible image; count it if it is another known kind."""
        parts = name.replace("\\", "/").split("/")
        if any(part.startswith(".") and part not in {".", ".."} for part in parts):
            return False
        return parts[0] != "__MACOSX" and not self._others.add(name) and is_image(name)

    def keep(self, name: str, member: Member) -> tuple[int, ...]:
        """Add an image; return its row."""
        self._names.append(name)
        return (member.archive, *(min(value, _LARGEST) for value in member[1:4]), *member[4:])

    def finish(
        self, archives: Sequence[str], rows: Iterable[tuple[int, ...]], *, read_member: ReadMember
    ) -> ArchiveImages:
        """Return the images.

        Args:
            archives: Paths or URLs.
            rows: The rows, made by :meth:`keep` while this iterates.
            read_member: How the archives store their files.

        Raises:
            DataError: If there is none.
        """
        table = np.fromiter(rows, _ROW)
        if not len(table):
            others = self._others.describe() or "expected files such as .jpg or .png"
            raise DataError(f"{self._place} has no image: {others}")
        self._others.warn(self._place)
        return ArchiveImages(archives, PackedNames(self._names), table, read_member=read_member)


def read_range(place: str, offset: int, length: int) -> bytes:
    """Read at most ``length`` bytes of a local file or a URL, from ``offset`` on.

    Raises:
        OSError: If it cannot be read.
        DataError: If the URL needs a library that is missing.
    """
    if is_remote(place):
        return read_remote(place, offset, length)
    with open(place, "rb") as file:
        file.seek(offset)
        return file.read(length)


def base_name(place: str) -> str:
    """Return the file name of a path or URL."""
    return os.path.basename(urlsplit(place).path if is_remote(place) else place)


def printable(name: str) -> str:
    """Return a name that fits into one line of a message."""
    return name if name.isprintable() else ascii(name)
