"""Open sources of unlabelled images by URI.

==================================================  ============================================
``DIR``                                             every image below a folder, at any depth
                                                    (``files.py``)
``FILE.txt``                                        a list, one path per line, relative to its
                                                    folder
``PATTERN``                                         ``photos/**/*.jpg``, in quotes (``globs.py``)
``FILE.zip``                                        a zip file, read in place (``archives/``)
``FILE.tar``, ``shards-{000..012}.tar``             tar files, such as WebDataset shards; indexed,
                                                    or streamed if compressed or behind a URL
``s3://...``, ``https://...``                       any of these behind a URL (``remote.py``)
``scenes:[COUNT[:SEED]]``                           synthetic scenes (``scenes.py``)
``hf-disk:DIR[/SPLIT][#COLUMN]``                    a Hugging Face dataset saved by
                                                    ``save_to_disk``
``hf:ORG/NAME[/CONFIG][:SPLIT][#COLUMN]``           a Hugging Face dataset, downloaded first, or a
                                                    local folder (``hf_datasets.py``)
``hf-stream:ORG/NAME[/CONFIG][:SPLIT][#COLUMN]``    the same, streamed, for sets larger than the
                                                    disk
==================================================  ============================================

Anything else is a path, which may contain colons. ``decoding.py`` lists how images are decoded.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from pcd_hub.data.decoding import ResultT
from pcd_hub.data.scenes import render_scene
from pcd_hub.data.sources.archives.tar_stream import TarStream
from pcd_hub.data.sources.archives.tars import is_indexed, is_tar, open_tars
from pcd_hub.data.sources.archives.zips import open_zip
from pcd_hub.data.sources.combined import combine
from pcd_hub.data.sources.files import ImageFiles
from pcd_hub.data.sources.globs import expand_braces, is_pattern, match_pattern
from pcd_hub.data.sources.hf_datasets import (
    HFImages,
    HFStream,
    load_dataset,
    load_from_disk,
    split_column,
)
from pcd_hub.data.sources.other_files import VIDEO_SUFFIXES, frames_command, is_image, suffix
from pcd_hub.data.sources.protocols import ImageSource, ImageStream
from pcd_hub.data.sources.remote import (
    RemoteImages,
    is_remote,
    match_remote,
    open_remote_images,
    url_path,
)
from pcd_hub.data.sources.uris import is_dir, is_file, local_path, split_uri
from pcd_hub.errors import DataError

__all__ = ["ImageSource", "ImageStream", "open_source", "open_sources"]

log = logging.getLogger("pcd_hub")

DEFAULT_SCENE_COUNT = 20_000
MAX_SCENES = 10**9
SCENE_SIZE = 96
_SCHEMES = ("scenes", "hf-disk", "hf", "hf-stream")


def open_sources(
    uris: Sequence[str], *, rank: int = 0, world_size: int = 1
) -> ImageSource | ImageStream:
    """Open one or several sources as one, in the given order.

    Tar files in succession are one source. What is named twice is counted once, and logged.

    Args:
        uris: URIs or paths; see the table at the top of this file.
        rank: Rank of this process; streams are split by process.
        world_size: Number of processes that share a stream.

    Raises:
        DataError: If a source does not exist, has no image, or needs a library that is missing, or
            a stream is combined with another source.
    """
    if isinstance(uris, str):
        raise TypeError("expected a sequence of sources; open_source opens one")
    if not uris:
        raise DataError("no images: expected a folder or another source")
    parts = [part for uri in dict.fromkeys(uris) for part in _expand(uri)]
    if len(dict.fromkeys(uris)) < len(uris):
        log.warning("a source is named twice; it is counted once")
    sources: list[ImageSource | ImageStream] = []
    for tars, group in itertools.groupby(parts, key=_is_tar_file):
        if tars:
            places = _without_repetition(list(map(str, group)))
            sources.append(_open_tar_files(places, rank=rank, world_size=world_size))
        else:
            sources += [_open_part(part, rank=rank, world_size=world_size) for part in group]
    if len(sources) == 1:
        return sources[0]
    indexed = [source for source in sources if isinstance(source, ImageSource)]
    if len(indexed) < len(sources):
        streams = [s.fingerprint() for s in sources if not isinstance(s, ImageSource)]
        raise DataError(
            f"{len(uris)} sources, of which one is a stream ({streams[0]}): expected a stream "
            "alone, or sources that are not streams, such as hf: instead of hf-stream:"
        )
    return combine(indexed)


def open_source(uri: str, *, rank: int = 0, world_size: int = 1) -> ImageSource | ImageStream:
    """Open the image source that ``uri`` names; see :func:`open_sources`."""
    return open_sources((uri,), rank=rank, world_size=world_size)


def _expand(uri: str) -> Iterable[str | ImageFiles | RemoteImages]:
    """Expand a pattern to the sources that it matches."""
    if is_remote(uri) and not uri.startswith("file://"):
        for url in expand_braces(uri):
            found = match_remote(url) if "*" in url else [url]
            yield from [found] if isinstance(found, RemoteImages) else found
        return
    scheme, path = split_uri(uri.removeprefix("file://"), _SCHEMES)
    if scheme:
        yield uri
        return
    for one in expand_braces(path):
        if not is_pattern(one):
            yield one
        elif isinstance(found := match_pattern(one), ImageFiles):
            yield found
        else:
            yield from found


def _is_tar_file(part: str | ImageFiles | RemoteImages) -> bool:
    return isinstance(part, str) and is_tar(part) and (is_remote(part) or not is_dir(Path(part)))


def _without_repetition(places: list[str]) -> list[str]:
    """Drop files that an earlier place names in another way, and log how many."""
    kept: dict[str, str] = {}
    for place in places:
        kept.setdefault(place if is_remote(place) else os.path.realpath(local_path(place)), place)
    if number := len(places) - len(kept):
        log.warning("%d tar files are named twice; they are counted once", number)
    return list(kept.values())


def _open_tar_files(places: list[str], *, rank: int, world_size: int) -> ImageSource | ImageStream:
    """Index tar files; if one cannot be indexed, stream all."""
    places = [place if is_remote(place) else str(local_path(place)) for place in places]
    missing = [p for p in places if not is_remote(p) and not is_file(Path(p))]
    if missing:
        raise DataError(
            f"no tar file {missing[0]} ({len(missing)} of {len(places)} are missing): expected "
            "files such as shards-{000000..000012}.tar"
        )
    if all(map(is_indexed, places)):
        return open_tars(places)
    return TarStream(places, rank=rank, world_size=world_size)


def _open_part(
    part: str | ImageFiles | RemoteImages, *, rank: int, world_size: int
) -> ImageSource | ImageStream:
    if not isinstance(part, str):
        return part
    if is_remote(part):
        return open_zip(part) if url_path(part).endswith(".zip") else open_remote_images(part)
    scheme, rest = split_uri(part, _SCHEMES)
    if scheme == "scenes":
        return Scenes.from_text(rest)
    if not scheme:
        return _open_path(local_path(rest))
    return _open_dataset(scheme, rest, uri=part, rank=rank, world_size=world_size)


def _open_dataset(
    scheme: str, rest: str, *, uri: str, rank: int, world_size: int
) -> ImageSource | ImageStream:
    rest, column = split_column(rest)
    match scheme:
        case "hf-disk":
            return HFImages(load_from_disk(rest), uri=uri, column=column)
        case "hf":
            return HFImages(load_dataset(rest, streaming=False), uri=uri, column=column)
        case _:
            stream = load_dataset(rest, streaming=True)
            return HFStream(stream, uri=uri, rank=rank, world_size=world_size, column=column)


def _open_path(path: Path) -> ImageSource:
    if is_dir(path):
        return ImageFiles.from_folder(path)
    match suffix(path.name):
        case ".txt":
            return ImageFiles.from_list(path)
        case ".zip":
            if not is_file(path):
                raise DataError(f"no zip file {path}: expected a zip file of images")
            return open_zip(str(path))
        case video if video in VIDEO_SUFFIXES and is_file(path):
            raise DataError(
                f"{path} is a video: expected images; {frames_command(str(path))} makes frames, "
                "then use FRAMES"
            )
        case _ if is_image(path.name) and is_file(path):
            raise DataError(
                f"{path} is one image: expected a folder, a .txt list, or a pattern in quotes, "
                f"such as '{path.parent}/*{path.suffix}'"
            )
    return ImageFiles.from_folder(path)  # raises


class Scenes(ImageSource):
    """Synthetic scenes as an image source."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        self.seed = seed

    @classmethod
    def from_text(cls, text: str) -> "Scenes":
        """Parse ``[COUNT[:SEED]]``."""
        count, _, seed = text.partition(":")
        try:
            source = cls(int(count or DEFAULT_SCENE_COUNT), seed=int(seed or 0))
        except ValueError:
            raise DataError(
                f"scenes:{text}: expected scenes:[COUNT[:SEED]], for example scenes:20000:7"
            ) from None
        if not 1 <= source.count <= MAX_SCENES or source.seed < 0:
            raise DataError(
                f"scenes:{text}: COUNT is 1 to {MAX_SCENES} and SEED at least 0, for example "
                "scenes:20000:7"
            )
        return source

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Apply ``to_image`` to scene ``index``; see :class:`ImageSource`."""
        return to_image(Image.fromarray(render_scene(self.seed, index, size=SCENE_SIZE).image))

    def name(self, index: int) -> str:
        """Return the number of the scene as text."""
        return str(index)

    def fingerprint(self) -> str:
        """Return count and seed, which determine the scenes."""
        return f"{self.count} generated scenes of {SCENE_SIZE} px, seed {self.seed}"
