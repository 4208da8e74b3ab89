"""Sources whose images are read by their bands."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pcd_hub.data.decoding import ResultT
from pcd_hub.data.multiband.reading import BandReader, FromFile
from pcd_hub.data.sources.hf_datasets import EncodedImage
from pcd_hub.data.sources.open import ImageSource, ImageStream


@dataclass(frozen=True)
class BandSource(ImageSource):
    """An image source whose images are opened as :class:`BandImage`."""

    source: ImageSource
    reader: BandReader

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.read(index, lambda image: image)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Apply ``to_image`` to image ``index``; see ``ImageSource.read``."""
        return self.source.read(index, FromFile(self.reader, to_image))

    def name(self, index: int) -> str:
        """Return the name of image ``index`` in its source."""
        return self.source.name(index)

    def path(self, index: int) -> Path | None:
        """Return the file of image ``index``; None if it is not a whole file."""
        path = getattr(self.source, "path", None)
        return path(index) if path else None

    def fingerprint(self) -> str:
        """Return the fingerprint of the files."""
        return self.source.fingerprint()


class BandStream:
    """A stream whose images are opened as :class:`BandImage`."""

    def __init__(self, stream: ImageStream, reader: BandReader) -> None:
        self.stream = stream
        self.reader = reader
        self.num_parts = stream.num_parts

    def read(
        self, *, state: Mapping[str, Any] | None
    ) -> Iterator[tuple[EncodedImage, dict[str, Any]]]:
        """Yield images from ``state`` on; see ``ImageStream.read``."""
        for image, after in self.stream.read(state=state):
            yield functools.partial(_read, image, self.reader), after

    def fingerprint(self) -> str:
        """Return the fingerprint of the stream."""
        return self.stream.fingerprint()


def _read(
    image: EncodedImage, reader: BandReader, to_image: Callable[[Image.Image], ResultT]
) -> ResultT:
    return image(FromFile(reader, to_image))


def with_bands(source: ImageSource | ImageStream, reader: BandReader) -> ImageSource | ImageStream:
    """Return the source with its files read by ``reader``."""
    if isinstance(source, ImageSource):
        return BandSource(source, reader)
    return BandStream(source, reader)
