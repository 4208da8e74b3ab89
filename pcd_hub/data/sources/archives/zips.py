"""Images in a zip file, local or behind a URL, read at random without extracting it.

Files stored or deflated are read, in folders at any depth. Encrypted files and other compression
methods are broken images; if there are no others, the zip file is rejected.
"""

import io
import logging
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from pcd_hub.data.decoding import describe_error
from pcd_hub.data.sources.archives.members import ENCRYPTED, ArchiveImages, Listing, Member
from pcd_hub.data.sources.remote import is_remote, open_remote, shown
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

MAX_DIRECTORY_BYTES = 2**29
"""Largest list of files that is read; millions of files."""
_EXPECTED = "expected files that are stored or deflated, without a password"
_HEADER_BYTES = 30
_EXTRA_BYTES = 256
"""Bytes read beyond a file, for the extra field in front of it, whose length is not known."""


def open_zip(place: str) -> ArchiveImages:
    """List the images of a zip file.

    Args:
        place: Path or URL.

    Raises:
        DataError: If it is not a zip file, or contains no image that can be read.
    """
    name = shown(place) if is_remote(place) else place
    listing, unreadable = Listing(name), dict[str, str]()

    def rows() -> Iterator[tuple[int, ...]]:
        for info in _list(place, name):
            if info.is_dir() or not listing.is_image(info.filename):
                continue
            if reason := _why_unreadable(info):
                unreadable.setdefault(reason, info.filename)
            method = ENCRYPTED if info.flag_bits & 1 else min(info.compress_type, 2**15 - 1)
            member = Member(
                0, info.header_offset, info.compress_size, info.file_size, method, info.CRC
            )
            yield listing.keep(info.filename, member)

    images = listing.finish([place], rows(), read_member=read_member)
    _check_readable(images, unreadable, name)
    return images


def _why_unreadable(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "encrypted"
    known = info.compress_type in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    return "" if known else f"compressed by method {info.compress_type}"


def _check_readable(images: ArchiveImages, unreadable: dict[str, str], name: str) -> None:
    """Reject or log files that cannot be read."""
    if not unreadable:
        return
    count = images.count_methods_except(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    reasons = ", ".join(f"{reason}, as {first!r}" for reason, first in unreadable.items())
    if count == len(images):
        raise DataError(f"{name}: all {count} images are {reasons}: {_EXPECTED}; pack it again")
    log.warning("%s: %d of %d images are %s: %s", name, count, len(images), reasons, _EXPECTED)


def _list(place: str, name: str) -> list[zipfile.ZipInfo]:
    try:
        with open_remote(place) if is_remote(place) else open(place, "rb") as file:
            bounded: Any = _BoundedReads(file)
            with zipfile.ZipFile(bounded) as archive:
                return archive.filelist
    except DataError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files
        raise DataError(
            f"{name} cannot be read as a zip file ({describe_error(error)}); "
            "copy or download it again"
        ) from error


class _BoundedReads(io.RawIOBase):
    """A file of which no more than ``MAX_DIRECTORY_BYTES`` are read at once."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise ValueError(
                f"its list of files has {size} bytes: expected at most {MAX_DIRECTORY_BYTES}; "
                "split it, or use tar shards"
            )
        return self._file.read(size)


def read_member(read: Callable[[int, int], bytes], member: Member) -> bytes:
    """Read and decompress one file, never more than its listed size, and check its CRC.

    Args:
        read: Reads (offset, length) of the zip file.
        member: The file; its offset is that of its local header.

    Raises:
        ValueError: If it is damaged, encrypted or compressed by another method.
    """
    if member.method not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        kind = "encrypted" if member.method == ENCRYPTED else f"compression {member.method}"
        raise ValueError(f"{kind}: {_EXPECTED}")
    block = read(member.offset, _HEADER_BYTES + _EXTRA_BYTES + member.stored)
    if len(block) < _HEADER_BYTES or block[:4] != b"PK\3\4":
        raise ValueError("no file at its place in the zip file; was it replaced?")
    start = _HEADER_BYTES + sum(struct.unpack_from("<HH", block, 26))
    content = block[start : start + member.stored]
    if len(content) < member.stored:  # a long name or extra field
        content = read(member.offset + start, member.stored)
    if member.method == zipfile.ZIP_DEFLATED:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise ValueError("the file is damaged: its size or checksum differs from the listed one")
    return content
