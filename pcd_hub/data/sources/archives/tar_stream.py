"""Tar files that can only be read in order: compressed, or behind a URL."""

import functools
import itertools
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from torch.utils.data import get_worker_info

from pcd_hub.data.decoding import BrokenImageError, ResultT, decode, describe_error
from pcd_hub.data.sources.archives.members import MAX_IMAGE_BYTES, Listing, printable
from pcd_hub.data.sources.archives.tars import find_masks, key_of
from pcd_hub.data.sources.files import hash_names
from pcd_hub.data.sources.protocols import EncodedImage
from pcd_hub.data.sources.remote import filesystem, is_remote, open_remote, shown, watch_forks
from pcd_hub.errors import DataError

_MAX_SAMPLE = 8
"""Images with the same key that are held in memory at once."""


class TarStream:
    """The images of tar files, each of which one worker of one process reads.

    The position is (tar file, images read of it); to resume, its earlier images are skipped.

    Args:
        places: Paths or URLs, shared by all processes.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, places: Sequence[str], *, rank: int, world_size: int) -> None:
        if len(places) < world_size:
            raise DataError(
                f"{len(places)} tar files are fewer than {world_size} processes: expected at least "
                "one for each; use fewer processes, or unpack them"
            )
        watch_forks()
        for place in filter(is_remote, places):
            filesystem(place)  # it may need a library
        self._places = tuple(places)[rank::world_size]
        self._all = tuple(map(_label, places))
        self.num_parts = len(places) // world_size

    def read(
        self, *, state: Mapping[str, Any] | None
    ) -> Iterator[tuple[EncodedImage, dict[str, Any]]]:
        """Read the images from ``state`` on in the stored order; see ``ImageStream.read``.

        Raises:
            DataError: If a tar file is missing or damaged, or a connection is lost.
        """
        info = get_worker_info()
        mine = self._places[info.id :: info.num_workers] if info else self._places
        at = dict(state or {"file": 0, "images": 0})
        for number in range(at["file"], len(mine)):
            done = at["images"] if number == at["file"] else 0
            label = _label(mine[number])
            images = _images(mine[number], skip=done)
            for count, (name, content, size) in enumerate(images, done + 1):
                image = functools.partial(_decode, content, size, f"{label}/{printable(name)}")
                yield image, {"file": number, "images": count}

    def fingerprint(self) -> str:
        """Return the number of files and a hash of their names; the content is not hashed."""
        return f"stream of {len(self._all)} tar files, names sha256 {hash_names(self._all)}"


def _label(place: str) -> str:
    return shown(place) if is_remote(place) else place


def _images(place: str, *, skip: int) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, content and size of each image after the first ``skip``.

    The content of a file above ``MAX_IMAGE_BYTES`` is empty.
    """
    listing = Listing(place)
    count = 0
    try:
        with (
            open_remote(place) if is_remote(place) else open(place, "rb") as file,
            tarfile.open(fileobj=file, mode="r|*") as archive,
        ):
            for members in _samples(archive, listing):
                # Masks reduce the count: no image after the first ``skip`` loses its content.
                sample = [
                    (
                        info.name,
                        _content(archive, info) if count + number > skip else b"",
                        info.size,
                    )
                    for number, info in enumerate(members, 1)
                ]
                masks = find_masks(name for name, _, _ in sample)
                for image in sample:
                    if image[0] not in masks:
                        count += 1
                        if count > skip:
                            yield image
    except DataError:
        raise
    except Exception as error:  # each file system has exceptions of its own
        raise DataError(
            f"{_label(place)} cannot be read completely: {describe_error(error)}; copy it again, "
            "then resume the run"
        ) from error


def _samples(archive: tarfile.TarFile, listing: Listing) -> Iterator[Iterator[tarfile.TarInfo]]:
    """Yield the images with the same key, at most ``_MAX_SAMPLE`` at once."""
    images = (info for info in _files(archive) if listing.is_image(info.name))
    for _, sample in itertools.groupby(images, key=lambda info: key_of(info.name)):
        for first in sample:
            rest = itertools.islice(sample, _MAX_SAMPLE - 1)  # noqa: B031 - the same iterator
            yield itertools.chain([first], rest)


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for info in archive:
        archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - an index of all headers would take kilobytes for each
        if info.isreg() and not info.issparse():
            yield info


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info) if info.size <= MAX_IMAGE_BYTES else None
    return file.read() if file else b""


def _decode(
    content: bytes, size: int, name: str, to_image: Callable[[Image.Image], ResultT]
) -> ResultT:
    if not content:
        raise BrokenImageError(name, f"{size} bytes: expected 1 to {MAX_IMAGE_BYTES}")
    return decode({"bytes": content, "path": None}, name, to_image)
