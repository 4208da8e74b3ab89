"""Where images come from: one URI each.

========================================  ======================================================
``DIR``                                   every image below a folder, at any depth; no class
                                          folders needed (``files.py``)
``FILE.txt``                              one path a line, relative to the list's own folder
``scenes:[COUNT[:SEED]]``                 generated scenes (``scenes.py``)
``hf-disk:DIR[/SPLIT]``                   a Hugging Face dataset saved by ``save_to_disk``
``hf:ORG/NAME[/CONFIG][:SPLIT]``          a Hugging Face dataset, downloaded whole (a local folder
                                          works too); see ``hf_datasets.py``
``hf-stream:ORG/NAME[/CONFIG][:SPLIT]``   the same, read as it arrives, for sets larger than the
                                          disk
========================================  ======================================================

Anything else is a path, which may hold colons. Every image is decoded as ``decoding.py`` lists.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from pcd_hub.data.decoding import (
    BrokenImageError,
    ResultT,
    as_rgb,
    decode,
    is_jpeg,
    shrink_jpeg,
    upright_jpeg_size,
)
from pcd_hub.data.files import IMAGE_SUFFIXES, ImageFiles
from pcd_hub.data.hf_datasets import (
    Encoded,
    HFImages,
    HFStream,
    load_dataset,
    load_from_disk,
)
from pcd_hub.data.scenes import render_scene
from pcd_hub.data.uris import is_dir, local_path, split_uri
from pcd_hub.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "BrokenImageError",
    "Encoded",
    "HFImages",
    "HFStream",
    "ImageFiles",
    "ImageSource",
    "ImageStream",
    "ResultT",
    "Scenes",
    "as_rgb",
    "decode",
    "is_jpeg",
    "open_source",
    "shrink_jpeg",
    "upright_jpeg_size",
]

DEFAULT_SCENE_COUNT = 20_000
MAX_SCENES = 10**9
SCENE_SIZE = 96
_SCHEMES = ("scenes", "hf-disk", "hf", "hf-stream")


@runtime_checkable
class ImageSource(Protocol):
    """A finite, indexable set of images. Must be picklable: workers get a copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image:
        """Image ``index`` as RGB; raises :class:`BrokenImageError` if it cannot be decoded."""
        ...

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """What ``to_image`` makes of image ``index``, opened but not yet decoded.

        Whatever it raises is a :class:`BrokenImageError`.
        """
        ...

    def fingerprint(self) -> str:
        """A short text that changes when the set of images does."""
        ...


@runtime_checkable
class ImageStream(Protocol):
    """An endless or finite sequence of images that can only be read in order."""

    num_parts: int
    """How many workers can read it at once."""

    def read(self, *, state: Mapping[str, Any] | None) -> Iterator[tuple[Encoded, dict[str, Any]]]:
        """Images from ``state`` on, each with the state that continues after it.

        Inside a DataLoader's worker it is that worker's share.
        """
        ...

    def fingerprint(self) -> str:
        """A short text that changes when the set of images does."""
        ...


def open_source(uri: str, *, rank: int = 0, world_size: int = 1) -> ImageSource | ImageStream:
    """Open the images that ``uri`` names (the table at the top of this file).

    Args:
        uri: Where the images are.
        rank: This process, for streams, which are split by process.
        world_size: How many processes share a stream.

    Raises:
        DataError: If there is no such place, it holds no image, or a needed library is missing.
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
    """Generated scenes as images."""

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
                f"scenes:{text} is not scenes:[COUNT[:SEED]], as in scenes:20000:7"
            ) from None
        if not 1 <= source.count <= MAX_SCENES or source.seed < 0:
            raise DataError(
                f"scenes:{text}: COUNT is 1 to {MAX_SCENES} and SEED at least 0, as in "
                "scenes:20000:7"
            )
        return source

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Image.Image:
        return self.read(index, as_rgb)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """See :class:`ImageSource`."""
        return to_image(Image.fromarray(render_scene(self.seed, index, size=SCENE_SIZE).image))

    def fingerprint(self) -> str:
        """Seed and count: the scenes are a function of them."""
        return f"{self.count} generated scenes of {SCENE_SIZE} px, seed {self.seed}"
