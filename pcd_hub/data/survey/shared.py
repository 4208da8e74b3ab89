"""Find images of a labelled set that are also among unlabelled images.

Equal images have equal bytes or equal decoded pixels. Near copies, which are only reported, are the
same picture encoded or scaled anew, or the next frame of a video (``duplicates.py``).
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.data.progress import Progress, silent
from pcd_hub.data.sources.protocols import ImageSource, ImageStream
from pcd_hub.data.survey.duplicates import (
    Thumbnail,
    file_size,
    group_equal_files,
    group_near,
    groups_across,
    make_thumbnail,
)
from pcd_hub.data.survey.survey import ImagesOfFiles
from pcd_hub.data.workers import num_cores

Pair = tuple[str, str]
"""Name in the labelled set, and name in the source."""

_CHUNK = 64
_MAX_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class LabelledPicture:
    """An image of a labelled set."""

    name: str
    load: Callable[[], Image.Image]
    """Loads it as upright RGB; may raise BrokenImageError."""

    @property
    def path(self) -> Path | None:
        """The file of the image; None if its name is not a path."""
        try:
            return path if (path := Path(self.name)).is_file() else None
        except (OSError, ValueError):
            return None


def pictures_of(images: SegmentationSet) -> list[LabelledPicture]:
    """Return the images of a split with masks."""
    return [
        LabelledPicture(name=images.image_name(index), load=partial(images.image, index))
        for index in range(len(images))
    ]


@dataclass(frozen=True, kw_only=True)
class SharedImages:
    """Images of a labelled set that are also in a source, each with the first that is like it."""

    equal: tuple[Pair, ...]
    near: tuple[Pair, ...]
    num_compared: int
    """Images of the source that could be decoded; 0 if equal files were found before."""


def find_shared(
    labelled: Sequence[LabelledPicture],
    source: ImageSource,
    *,
    progress: Progress = silent,
) -> SharedImages:
    """Find images of a labelled set in a source: equal files first, then equal and like pixels.

    Pixels are only compared if no file is equal, as that needs every image to be decoded.

    Args:
        labelled: Images of the labelled set.
        source: The other images.
        progress: Shows the progress of decoding; silent if not given.
    """
    if equal := equal_files(labelled, source):
        return SharedImages(equal=equal, near=(), num_compared=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single files
        return _like_pixels(labelled, source, progress)


def equal_files(
    labelled: Sequence[LabelledPicture], source: ImageSource | ImageStream
) -> tuple[Pair, ...]:
    """Find images of a labelled set whose files are equal to files of a source.

    Only files of equal size in both are read. Sources whose images are no files have none.
    """
    if not (isinstance(source, ImageSource) and isinstance(source, ImagesOfFiles)):
        return ()
    ours = [picture.path for picture in labelled]
    theirs = [source.path(index) for index in range(len(source))]
    sizes = {_size(path) for path in ours if path is not None}
    paths = [*ours, *(path if path and _size(path) in sizes else None for path in theirs)]
    files = [(number, path) for number, path in enumerate(paths) if path is not None]
    groups, _ = group_equal_files(files, deadline=math.inf)
    return tuple(
        (labelled[ours].name, source.name(theirs[0] - len(labelled)))
        for mine, theirs in groups_across(groups, len(labelled))
        for ours in mine
    )


def _size(path: Path) -> int | None:
    try:
        return file_size(path)
    except OSError:
        return None


def _like_pixels(
    labelled: Sequence[LabelledPicture],
    source: ImageSource,
    progress: Progress,
) -> SharedImages:
    ours, theirs = _thumbnails(labelled, source, progress)
    numbers = [*ours, *theirs]
    near = group_near([*ours.values(), *theirs.values()])
    groups = [[numbers[place] for place in group] for group in near]

    @cache
    def pixels(number: int) -> Any:
        return _pixels(labelled, source, number)

    found: dict[bool, list[Pair]] = {True: [], False: []}
    for mine, others in groups_across(groups, len(labelled)):
        for number in mine:
            same = next((one for one in others if pixels(one) == pixels(number)), None)
            other = others[0] if same is None else same
            pair = (labelled[number].name, source.name(other - len(labelled)))
            found[same is not None].append(pair)
    return SharedImages(
        equal=tuple(found[True]), near=tuple(found[False]), num_compared=len(theirs)
    )


def _thumbnails(
    labelled: Sequence[LabelledPicture],
    source: ImageSource,
    progress: Progress,
) -> tuple[dict[int, Thumbnail], dict[int, Thumbnail]]:
    """Return the thumbnails of both by number, without broken images.

    The numbers of the source follow those of the labelled set.
    """
    count = len(labelled)

    def look(number: int) -> Thumbnail | None:
        try:
            if number < count:
                return make_thumbnail(labelled[number].load())
            return source.read(number - count, make_thumbnail)
        except BrokenImageError:  # training names it
            return None

    total = count + len(source)
    parts = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    found: dict[int, Thumbnail] = {}
    with ThreadPoolExecutor(min(num_cores(), _MAX_THREADS)) as pool:
        for part in progress(parts, f"comparing images, {_CHUNK} at a time", total=len(parts)):
            seen = zip(part, pool.map(look, part), strict=True)
            found |= {number: one for number, one in seen if one is not None}
    ours = {number: one for number, one in found.items() if number < count}
    return ours, {number: one for number, one in found.items() if number >= count}


def _pixels(labelled: Sequence[LabelledPicture], source: ImageSource, number: int) -> object:
    """Return the size and a hash of the upright RGB pixels of an image."""
    count = len(labelled)
    load = labelled[number].load if number < count else partial(source.__getitem__, number - count)
    image = load()
    return image.size, hashlib.sha256(image.tobytes()).digest()
