"""Several sources as one: their images in the given order, with one index."""

import bisect
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from pcd_hub.data.decoding import ResultT
from pcd_hub.data.sources.archives.members import ArchiveImages
from pcd_hub.data.sources.files import ImageFiles
from pcd_hub.data.sources.protocols import ImageSource

log = logging.getLogger("pcd_hub")


class CombinedImages(ImageSource):
    """Several sources, one after the other.

    Args:
        sources: The sources, at least one.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = tuple(sources)
        self._ends = list(itertools.accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Decode image ``index`` by ``to_image``; see ``ImageSource.read``."""
        source, own_index = self._find(index)
        return source.read(own_index, to_image)

    def name(self, index: int) -> str:
        """Return the name of image ``index`` in its source."""
        source, own_index = self._find(index)
        return source.name(own_index)

    def path(self, index: int) -> Path | None:
        """Return the file of image ``index``; None if it is not a whole file on this machine."""
        source, place = self._find(index)
        return source.path(place) if isinstance(source, ImageFiles) else None

    def _find(self, index: int) -> tuple[ImageSource, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect.bisect_right(self._ends, index)
        return self.sources[number], index - (self._ends[number - 1] if number else 0)

    def fingerprint(self) -> str:
        """Return the fingerprints of all sources, in their order."""
        own = "; ".join(source.fingerprint() for source in self.sources)
        return f"{len(self)} images of {len(self.sources)} sources: {own}"


def combine(sources: Sequence[ImageSource]) -> ImageSource:
    """Combine sources, without the files that an earlier source has; a single one is unchanged."""
    if len(sources) == 1:
        return sources[0]
    kept = without_repeated_files(sources)
    return kept[0] if len(kept) == 1 else CombinedImages(kept)


def without_repeated_files(sources: Iterable[ImageSource]) -> list[ImageSource]:
    """Drop image files and archives that an earlier source has, and log how many.

    Links to folders are resolved, links to files are not.
    """
    kept: list[ImageSource] = []
    seen: dict[str, set[str]] = {}
    archives: set[tuple[str, ...]] = set()
    for source in sources:
        match source:
            case ImageFiles():
                source = _new_files(source, seen)  # noqa: PLW2901
            case ArchiveImages():
                places = tuple(map(os.path.realpath, source.archives))
                if places in archives:
                    log.warning("%s is named twice; it is counted once", source.archives[0])
                    continue
                archives.add(places)
        if len(source):
            kept.append(source)
    return kept


def _new_files(source: ImageFiles, seen: dict[str, set[str]]) -> ImageFiles:
    """Return the files of ``source`` that are not in ``seen`` (names by real folder); add them."""
    real_folders: dict[str, str] = {}
    new: list[str] = []
    own: dict[str, set[str]] = {}
    paths = source.paths()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(source.root / (folder or "."))
        place = real_folders[folder]
        if name not in seen.get(place, ()):
            new.append(path)
        own.setdefault(place, set()).add(name)
    for place, names in own.items():
        seen.setdefault(place, set()).update(names)
    if len(new) == len(paths):
        return source
    repeated = len(paths) - len(new)
    log.warning(
        "%d of %d images of %s are also in an earlier source; they are counted once",
        *(repeated, len(paths), source.root),
    )
    return ImageFiles(new, root=source.root)
