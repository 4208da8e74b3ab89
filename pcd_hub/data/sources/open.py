"""Open sources of unlabelled images by URI.

========================================  ======================================================
``DIR``                                   every image below a folder, at any depth
                                          (``files.py``)
``FILE.txt``                              a list, one path per line, relative to its folder
``scenes:[COUNT[:SEED]]``                 synthetic scenes (``scenes.py``)
``hf-disk:DIR[/SPLIT]``                   a Hugging Face dataset saved by ``save_to_disk``
``hf:ORG/NAME[/CONFIG][:SPLIT]``          a Hugging Face dataset, downloaded first, or a local
                                          folder (``hf_datasets.py``)
``hf-stream:ORG/NAME[/CONFIG][:SPLIT]``   the same, streamed, for sets larger than the disk
========================================  ======================================================

Anything else is a path, which may contain colons. ``decoding.py`` lists how images are decoded.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from pcd_hub.data.decoding import ResultT, as_rgb
from pcd_hub.data.scenes import render_scene
from pcd_hub.data.sources.files import ImageFiles
from pcd_hub.data.sources.hf_datasets import (
    EncodedImage,
    HFImages,
    HFStream,
    load_dataset,
    load_from_disk,
)
from pcd_hub.data.sources.uris import is_dir, local_path, split_uri
from pcd_hub.errors import DataError

DEFAULT_SCENE_COUNT = 20_000
MAX_SCENES = 10**9
SCENE_SIZE = 96
_SCHEMES = ("scenes", "hf-disk", "hf", "hf-stream")


@runtime_checkable
class ImageSource(Protocol):
    """A finite, indexable set of images; picklable, as workers get a copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image:
        """Decode image ``index`` to upright RGB; raises :class:`BrokenImageError` if it fails."""
        ...

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Apply ``to_image`` to image ``index``, opened but not yet decoded.

        Raises:
            BrokenImageError: If opening the image or ``to_image`` fails.
        """
        ...

    def fingerprint(self) -> str:
        """Return a short text that changes when the set of images changes."""
        ...


@runtime_checkable
class ImageStream(Protocol):
    """A sequence of images that can only be read in order."""

    num_parts: int
    """Number of workers that can read it at once."""

    def read(
        self, *, state: Mapping[str, Any] | None
    ) -> Iterator[tuple[EncodedImage, dict[str, Any]]]:
        """Yield images from ``state`` on, each with the state that continues after it.

        Inside a DataLoader worker, only the worker's share is read.
        """
        ...

    def fingerprint(self) -> str:
        """Return a short text that changes when the set of images changes."""
        ...


def open_source(uri: str, *, rank: int = 0, world_size: int = 1) -> ImageSource | ImageStream:
    """Open the image source that ``uri`` names (see the table at the top of this file).

    Args:
        uri: URI or path of the source.
        rank: Rank of this process; streams are split by process.
        world_size: Number of processes that share a stream.

    Raises:
        DataError: If the source does not exist, has no image, or needs a library that is missing.
    """
    scheme, rest = split_uri(uri, _SCHEMES)
    match scheme:
        case "scenes":
            return Scenes.from_text(rest)
        case "hf-disk":
            return HFImages(load_from_disk(rest), uri=uri)
        case "hf":
            return HFImages(load_dataset(rest, streaming=False), uri=uri)
        case "hf-stream":
            return HFStream(
                load_dataset(rest, streaming=True), uri=uri, rank=rank, world_size=world_size
            )
        case _:
            path = local_path(rest)
            is_list = path.suffix == ".txt" and not is_dir(path)
            return ImageFiles.from_list(path) if is_list else ImageFiles.from_folder(path)


class Scenes:
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

    def __getitem__(self, index: int) -> Image.Image:
        return self.read(index, as_rgb)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Apply ``to_image`` to scene ``index``; see :class:`ImageSource`."""
        return to_image(Image.fromarray(render_scene(self.seed, index, size=SCENE_SIZE).image))

    def fingerprint(self) -> str:
        """Return count and seed, which determine the scenes."""
        return f"{self.count} generated scenes of {SCENE_SIZE} px, seed {self.seed}"
