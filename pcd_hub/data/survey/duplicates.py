"""Find images that occur more than once: equal files, and near copies by a hash of the content.

A near copy is the same picture encoded or scaled anew, or the next frame of a video. Mirrored,
rotated, cropped and brighter copies are not found.
"""

import hashlib
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

from pcd_hub.data.decoding import is_jpeg, shrink_jpeg
from pcd_hub.data.multiband.image import BandImage, decoded
from pcd_hub.data.multiband.values import brightest, value_shares

ItemT = TypeVar("ItemT")

_HEAD_BYTES = 1 << 16
_WIDTH, _HEIGHT = 9, 8
_DECODED_SCALE = 8
"""A JPEG is decoded at this multiple of 9 x 8 or larger; below it the grids of blocks show."""
MAX_HASH_BITS = 7
"""Near copies differ in at most this many of the 64 bits of their hashes."""
_BANDS = MAX_HASH_BITS + 1
"""Two hashes that differ in 7 bits agree in one of 8 bands of 8 bits."""
MAX_DIFFERENCE = 0.04
"""Mean absolute difference of near copies in their 9 x 8 colours, as a share of the contrast."""
JPEG_DIFFERENCE = 2.0
"""Difference, in levels of 255, that encoding alone causes at any contrast."""
MIN_CONTRAST = 4.0
"""Images with a smaller contrast, the standard deviation of 9 x 8 grays, are not compared."""
_LARGEST_RUN = 2000
"""Equal bands are compared in groups of this many images; pairs across groups are missed."""


@dataclass(frozen=True)
class Thumbnail:
    """Size and content of an image."""

    size: tuple[int, int]
    """Width and height in pixels."""
    colours: UInt8[np.ndarray, "8 9 3"]
    """Mean colours of 9 x 8 parts; of many bands, the means of three groups of them."""
    digest: bytes
    """Hash of all pixels as they are decoded for the thumbnail."""
    brightest: int
    """The value of 255 that at most 0.1 % of these pixels exceed."""


def make_thumbnail(opened: Image.Image | BandImage) -> Thumbnail:
    """Decode an opened image completely, a JPEG at a smaller size, and reduce it to 9 x 8 pixels.

    A file that ends too early fails, like in training.
    """
    size = opened.size
    if not isinstance(opened, BandImage) and is_jpeg(opened):
        shrink_jpeg(opened, min(size[0] / _WIDTH, size[1] / _HEIGHT) / _DECODED_SCALE)
    image = decoded(opened)
    small = np.asarray(image.resize((_WIDTH, _HEIGHT), Image.Resampling.BOX))
    digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
    return Thumbnail(size, _three_bands(small), digest, int(brightest(value_shares(image)).max()))


def _three_bands(
    pixels: UInt8[np.ndarray, "height width bands"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the means of three groups of bands; of one or two bands, some of them repeated."""
    count = pixels.shape[-1]
    if count < 3:
        return pixels[..., [0, count - 1, 0]]
    groups = np.array_split(pixels, 3, axis=-1)
    return np.stack([group.mean(-1).round() for group in groups], axis=-1).astype(np.uint8)


def group_equal_files(
    files: Iterable[tuple[int, Path]], *, deadline: float
) -> tuple[list[list[int]], int]:
    """Group equal files, in groups of at least two; only files of equal size are read.

    Args:
        files: Number and path of each file.
        deadline: Time of ``time.monotonic()`` after which no more files are looked at.

    Returns:
        The numbers of the files of each group, and how many files were compared.
    """
    skipped = 0
    now = time.monotonic()

    def until(
        end: float, key: Callable[[Path], Hashable]
    ) -> Callable[[tuple[int, Path]], Hashable]:
        def limited(file: tuple[int, Path]) -> Hashable:
            nonlocal skipped
            if time.monotonic() > end:
                skipped += 1
                return None
            try:
                return key(file[1])
            except OSError:  # counted as a broken image when it is decoded
                return None

        return limited

    halfway = now + (deadline - now) / 2
    files = list(files)
    groups = group_equal(
        files, [until(halfway, file_size), until(deadline, _hash_head), until(deadline, _hash)]
    )
    return [[number for number, _ in group] for group in groups], len(files) - skipped


def file_size(path: Path) -> int | None:
    """Return the bytes of a regular file; None for anything else.

    Raises:
        OSError: If the path cannot be read.
    """
    status = path.stat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _hash_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_HEAD_BYTES)).digest()


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def group_equal(
    items: Iterable[ItemT], keys: Iterable[Callable[[ItemT], Hashable]]
) -> list[list[ItemT]]:
    """Group the items whose keys are all equal, in groups of at least two.

    Args:
        items: The items.
        keys: Functions of an item, cheap ones first: each is called for the items that the keys
            before it do not tell apart. None means unlike every other item.
    """
    groups = [list(items)]
    for key in keys:
        groups = [part for group in groups for part in _split(group, key)]
    return groups


def _split(group: list[ItemT], key: Callable[[ItemT], Hashable]) -> Iterator[list[ItemT]]:
    parts: defaultdict[Hashable, list[ItemT]] = defaultdict(list)
    for item in group:
        if (value := key(item)) is not None:
            parts[value].append(item)
    return (part for part in parts.values() if len(part) > 1)


def group_near(thumbnails: list[Thumbnail]) -> list[list[int]]:
    """Group the near copies among the thumbnails by their places, in groups of at least two."""
    if not thumbnails:
        return []
    colours = np.stack([thumbnail.colours for thumbnail in thumbnails]).astype(np.int16)
    grays = colours @ np.asarray([0.299, 0.587, 0.114])
    contrasts = grays.std((1, 2))
    (places,) = np.nonzero(contrasts >= MIN_CONTRAST)
    pairs = places[near_pairs(difference_hash(grays[places]))]
    first, second = pairs.T
    differences = np.abs(colours[first] - colours[second]).mean((1, 2, 3))
    limits = np.maximum(MAX_DIFFERENCE * contrasts[first], JPEG_DIFFERENCE)
    return _connected(pairs[differences <= limits])


def groups_across(groups: Iterable[list[int]], border: int) -> list[tuple[list[int], list[int]]]:
    """Split every group of numbers at ``border``; leave out those that are all on one side."""
    split = (
        ([one for one in group if one < border], [one for one in group if one >= border])
        for group in groups
    )
    return [(first, second) for first, second in split if first and second]


def difference_hash(grays: np.ndarray) -> UInt64[np.ndarray, " n"]:
    """Return 64 bits for each image of 9 x 8 grays: whether each is lighter than its left one.

    Args:
        grays: Of shape (images, 8, 9).
    """
    bits = np.packbits(grays[..., 1:] > grays[..., :-1], axis=-1)
    return bits.reshape(-1, _HEIGHT).view(np.uint64)[:, 0]


def near_pairs(hashes: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, "pairs 2"]:
    """Return the places of all pairs of hashes that differ in at most ``MAX_HASH_BITS`` bits.

    Only hashes with an equal band of 8 bits are compared, not all pairs.
    """
    bands = np.ascontiguousarray(hashes).view(np.uint8).reshape(len(hashes), _BANDS)
    found = [np.empty((0, 2), np.int64)]
    for band in bands.T:
        for run in _equal_runs(band):
            first, second = (run[places] for places in np.triu_indices(len(run), 1))
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= MAX_HASH_BITS
            found.append(np.stack([first[near], second[near]], 1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0)


def _equal_runs(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of equal values, in runs of 2 to ``_LARGEST_RUN``."""
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order])) + 1
    for run in np.split(order, ends):
        for start in range(0, len(run), _LARGEST_RUN):
            if len(part := run[start : start + _LARGEST_RUN]) > 1:
                yield part


def _connected(pairs: Int64[np.ndarray, "pairs 2"]) -> list[list[int]]:
    """Return the groups of places that the pairs connect, each in ascending order."""
    parents: dict[int, int] = {}

    def root(place: int) -> int:
        while (parent := parents.setdefault(place, place)) != place:
            parents[place] = parents[parent]
            place = parent
        return place

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parents[high] = low
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for place in sorted(parents):
        groups[root(place)].append(place)
    return list(groups.values())
