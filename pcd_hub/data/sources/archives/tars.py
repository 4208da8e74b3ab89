"""Images in tar files, such as WebDataset shards ``shards-{000000..000012}.tar``.

Uncompressed files on this machine are indexed once by their headers, then read at random. Others
are streams (``tar_stream.py``).
"""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence

from pcd_hub.data.decoding import describe_error
from pcd_hub.data.sources.archives.members import ArchiveImages, Listing, Member, base_name
from pcd_hub.data.sources.remote import is_remote
from pcd_hub.errors import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_SUFFIXES = (".tar", *COMPRESSED)


def is_tar(place: str) -> bool:
    """Check whether a path or URL names a tar file."""
    return base_name(place).lower().endswith(_SUFFIXES)


def is_indexed(place: str) -> bool:
    """Check whether a tar file can be read at random: local and not compressed."""
    return not is_remote(place) and not place.lower().endswith(COMPRESSED)


def open_tars(places: Sequence[str]) -> ArchiveImages:
    """Index the images of local uncompressed tar files.

    Raises:
        DataError: If one is missing or damaged, or none has an image.
    """
    label = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
    listing = Listing(label)

    def rows() -> Iterator[tuple[int, ...]]:
        for number, place in enumerate(places):
            headers = [
                (info.name, info.offset_data, info.size)
                for info in _headers(place)
                if info.isreg() and not info.issparse() and listing.is_image(info.name)
            ]
            masks = find_masks(name for name, _, _ in headers)
            for name, offset, size in headers:
                if name not in masks:
                    yield listing.keep(name, Member(number, offset, size, size, 0, 0))

    return listing.finish(places, rows(), read_member=read_member)


def _headers(place: str) -> Iterator[tarfile.TarInfo]:
    count = 0
    try:
        with tarfile.open(place, "r:") as archive:
            for info in archive:
                count += 1
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - an index of all headers would take kilobytes for each
                yield info
            end = archive.offset
        if os.path.getsize(place) < end - tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data")
    except (OSError, tarfile.TarError, ValueError) as error:
        after = f" after {count} files" if count else ""
        raise DataError(
            f"{place} cannot be read as an uncompressed tar file{after} "
            f"({describe_error(error)}); copy or download it again, or name it .tar.gz if it is "
            "compressed"
        ) from error


def find_masks(names: Iterable[str]) -> set[str]:
    """Find files such as ``0.seg.png`` next to ``0.jpg``: another column of the same sample.

    ``0.1.png`` is none: a number is no name of a column.
    """
    names = list(names)
    compound = [name for name in names if not all(map(str.isdigit, _middle(name)))]
    if not compound:
        return set()
    plain = {key_of(name) for name in names if "." not in _extension(name)}
    return {name for name in compound if key_of(name) in plain}


def key_of(name: str) -> str:
    """Return the WebDataset key: the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2]


def _middle(name: str) -> list[str]:
    return _extension(name).split(".")[:-1]


def read_member(read: Callable[[int, int], bytes], member: Member) -> bytes:
    """Read one file.

    Args:
        read: Reads (offset, length) of the tar file.
        member: The file.

    Raises:
        ValueError: If the tar file is shorter than it was.
    """
    content = read(member.offset, member.size)
    if len(content) < member.size:
        raise ValueError("the tar file is truncated; was it replaced?")
    return content
