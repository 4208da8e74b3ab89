"""Interfaces of the sources of unlabelled images."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from pcd_hub.data.decoding import ResultT, as_rgb


@runtime_checkable
class ImageSource(Protocol):
    """A finite, indexable set of images; picklable, as workers get a copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image:
        """Decode image ``index`` to upright RGB; raises :class:`BrokenImageError` if it fails."""
        return self.read(index, as_rgb)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Apply ``to_image`` to image ``index``, opened but not yet decoded.

        Raises:
            BrokenImageError: If opening the image or ``to_image`` fails.
        """
        ...

    def name(self, index: int) -> str:
        """Return the name of image ``index`` within its source, which a copy of the source keeps.

        For example the path relative to the folder. Two sources may share a name.
        """
        ...

    def fingerprint(self) -> str:
        """Return a short text that changes when the set of images changes."""
        ...


@runtime_checkable
class EncodedImage(Protocol):
    """An image of a stream, not yet opened."""

    def __call__(self, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Decode the image by ``to_image``; see ``ImageSource.read``."""
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
