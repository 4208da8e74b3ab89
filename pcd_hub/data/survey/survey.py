"""Survey images before training: how many and how large, which are broken, which are copies.

Each step is limited in time and in the number of images; if there are more, a random sample is
read. A copy counts once for each image beyond the first: an image that occurs three times has two
copies. A contrastive loss treats copies as negatives of each other.
"""

import functools
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.progress import Progress, silent
from pcd_hub.data.sources.open import ImageSource, ImageStream, Scenes
from pcd_hub.data.survey.duplicates import (
    Thumbnail,
    group_equal,
    group_equal_files,
    group_near,
    make_thumbnail,
)
from pcd_hub.data.survey.result import MIN_SIDE, Survey, check, check_count
from pcd_hub.data.workers import num_cores

_STREAM_IMAGES = 64
_SCENE_IMAGES = 16  # generated, so all alike
_CHUNK = 32
_MAX_EXAMPLES = 5
_MAX_THREADS = 8


@runtime_checkable
class ImagesOfFiles(Protocol):
    """A source in which an image may be a whole file on this machine."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> Path | None:
        """Return the file of image ``index``; None if it is not a whole file."""
        ...


def survey(
    source: ImageSource | ImageStream,
    *,
    max_images: int = 20_000,
    seconds: float = 60.0,
    num_threads: int | None = None,
    progress: Progress = silent,
) -> Survey:
    """Survey a set of images; of a stream, the first 64.

    Exact copies are looked for among all images if these are files on this machine, near copies
    among the images that are read.

    Args:
        source: The images.
        max_images: Most images to read; beyond it, a random sample is read.
        seconds: Most seconds to spend. One image that is being read is not interrupted.
        num_threads: Threads that read; the number of cores, at most 8, if not given.
        progress: Shows the progress; silent if not given.

    Raises:
        DataError: If there are fewer than ``MIN_IMAGES`` distinct images, no image can be decoded,
            too many are broken, or most have a side below ``MIN_SIDE``.
    """
    start = time.monotonic()
    if isinstance(source, ImageStream):
        seen = _read_stream(source, start + seconds)
        found = _summarise(seen, [], str, num_images=None, num_files=0)
    else:
        check_count(len(source))
        max_images = _SCENE_IMAGES if isinstance(source, Scenes) else max_images
        order = np.random.default_rng(0).permutation(len(source)).tolist()
        groups, num_files = _compare_files(source, order, deadline=start + seconds / 2)
        num_threads = num_threads or min(num_cores(), _MAX_THREADS)
        seen = _read(source, order[:max_images], start + seconds, num_threads, progress)
        found = _summarise(seen, groups, source.name, num_images=len(source), num_files=num_files)
    check(found)
    return replace(found, seconds=round(time.monotonic() - start, 2))


@dataclass(frozen=True)
class _Seen:
    """What is known of an image after it was read."""

    is_file: bool
    thumbnail: Thumbnail | None
    """None if it is broken."""
    fault: str = ""


def _read(
    source: ImageSource,
    indices: list[int],
    deadline: float,
    num_threads: int,
    progress: Progress,
) -> dict[int, _Seen]:
    """Read images until the deadline, at least a few."""

    def look(index: int) -> _Seen:
        read = functools.partial(source.read, index, make_thumbnail)
        return _look(read, is_file=_path(source, index) is not None)

    seen: dict[int, _Seen] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(num_threads) as pool:
        warnings.simplefilter("ignore")  # of single files; those that cannot be read are counted
        parts = range(0, len(indices), _CHUNK)
        for first in progress(parts, f"surveying images, {_CHUNK} at a time", total=len(parts)):
            part = indices[first : first + _CHUNK]
            seen |= zip(part, pool.map(look, part), strict=True)
            if time.monotonic() > deadline:
                break
    return seen


def _read_stream(stream: ImageStream, deadline: float) -> dict[int, _Seen]:
    seen: dict[int, _Seen] = {}
    for number, (image, _) in enumerate(stream.read(state=None)):
        seen[number] = _look(functools.partial(image, make_thumbnail), is_file=False)
        if len(seen) == _STREAM_IMAGES or time.monotonic() > deadline:
            break
    return seen


def _look(read: Callable[[], Thumbnail], *, is_file: bool) -> _Seen:
    try:
        return _Seen(is_file, read())
    except BrokenImageError as error:
        return _Seen(is_file, None, f"{error.name} ({error.reason})")


def _path(source: ImageSource, index: int) -> Path | None:
    return source.path(index) if isinstance(source, ImagesOfFiles) else None


def _compare_files(
    source: ImageSource, order: list[int], *, deadline: float
) -> tuple[list[list[int]], int]:
    """Group equal files, and count the files that were compared."""
    paths = ((index, _path(source, index)) for index in order)
    files = ((index, path) for index, path in paths if path is not None)
    return group_equal_files(files, deadline=deadline)


def _summarise(
    seen: dict[int, _Seen],
    file_groups: list[list[int]],
    name: Callable[[int], str],
    *,
    num_images: int | None,
    num_files: int,
) -> Survey:
    thumbnails = {i: one.thumbnail for i, one in seen.items() if one.thumbnail is not None}
    others = [index for index in thumbnails if not seen[index].is_file]
    exact = file_groups + group_equal(others, [lambda index: thumbnails[index].digest])
    copies = {index for group in exact for index in group[1:]}
    distinct = [index for index in thumbnails if index not in copies]
    places = group_near([thumbnails[index] for index in distinct])
    near = [[distinct[place] for place in group] for group in places]
    sides = [min(thumbnail.size) for thumbnail in thumbnails.values()] or [0]
    faults = [one.fault for one in seen.values() if one.thumbnail is None]
    return Survey(
        num_images=num_images,
        num_sampled=len(seen),
        short_side=round(statistics.median(sides)),
        smallest_side=min(sides),
        largest_side=max(sides),
        num_tiny=sum(side < MIN_SIDE for side in sides) if thumbnails else 0,
        brightest=max((one.brightest for one in thumbnails.values()), default=255),
        num_broken=len(faults),
        first_broken=faults[0] if faults else "",
        num_compared=num_files + len(others),
        num_exact_copies=_count_copies(exact),
        num_near_copies=_count_copies(near),
        examples=tuple(
            (name(first), name(second))
            for groups in (exact, near)
            for first, second, *_ in groups[:_MAX_EXAMPLES]
        ),
        seconds=0.0,
    )


def _count_copies(groups: list[list[int]]) -> int:
    return sum(len(group) - 1 for group in groups)
