"""Where images come from: one URI each.

============================  ==================================================================
``DIR``                       every image below a folder, at any depth; no class folders needed
``FILE.txt``                  one path a line, relative to the list's own folder
``scenes:[COUNT[:SEED]]``     generated scenes (``scenes.py``)
``hf-disk:DIR``               a Hugging Face dataset saved by ``save_to_disk``
``hf:ORG/NAME[:SPLIT]``       a Hugging Face dataset, downloaded whole (a local folder works too)
``hf-stream:ORG/NAME[:SPLIT]``  the same, read as it arrives, for sets larger than the disk
============================  ==================================================================
"""

import copy
import functools
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pcd_hub.data.scenes import render_scene
from pcd_hub.errors import DataError, first_line

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)
DEFAULT_SCENE_COUNT = 20_000
MAX_SCENES = 10**9
SCENE_SIZE = 96
_MOST_PIXELS = 89_478_485
"""A quarter of a GiB at three bytes a pixel: where Pillow begins to warn of bombs."""

ResultT = TypeVar("ResultT")


class BrokenImageError(DataError):
    """One image that cannot be decoded; ``name`` says which."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)


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
class Encoded(Protocol):
    """One image of a stream, not yet opened."""

    def __call__(self, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """As :meth:`ImageSource.read`."""
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
    scheme, _, rest = uri.partition(":")
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
            path = Path(os.path.expanduser(uri))  # a user who is not known is left as it is
            return (
                ImageFiles.from_list(path)
                if path.suffix == ".txt"
                else ImageFiles.from_folder(path)
            )


class ImageFiles:
    """Image files on this machine."""

    def __init__(self, paths: list[str], *, root: Path) -> None:
        self._paths = np.asarray(paths, np.bytes_ if all(p.isascii() for p in paths) else np.str_)
        self._root = root

    @classmethod
    def from_folder(cls, folder: Path) -> "ImageFiles":
        """Every image below ``folder``, sorted by path; dotfiles are left out."""
        if not os.path.isdir(folder):  # False where Path.is_dir raises: no right, too long a name
            raise DataError(
                f"no folder {folder}; give a folder of images, a .txt list, "
                "or one of scenes: hf-disk: hf:"
            )
        paths = sorted(_image_paths(folder))
        if not paths:
            raise DataError(
                f"{folder} holds no image ({' '.join(sorted(IMAGE_SUFFIXES))}), at any depth"
            )
        return cls(paths, root=folder)

    @classmethod
    def from_list(cls, file: Path) -> "ImageFiles":
        """The paths in ``file``, one a line, in its order."""
        if not os.path.isfile(file):
            raise DataError(
                f"no list {file}; write one image path a line, relative to the list's folder"
            )
        paths = [line for line in file.read_text().splitlines() if line.strip()]
        if not paths:
            raise DataError(f"{file} names no image; write one path a line")
        return cls(paths, root=file.parent)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image.Image:
        return self.read(index, as_rgb)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """See :class:`ImageSource`."""
        path = self._root / _text(self._paths[index])
        return decode(path, str(path), to_image)

    def paths(self) -> list[str]:
        """Relative to the folder."""
        return [_text(path) for path in self._paths]

    def fingerprint(self) -> str:
        """sha256 over the paths; the pixels are not read."""
        digest = hashlib.sha256(self._paths.tobytes()).hexdigest()
        return f"{len(self)} files, paths sha256 {digest[:16]}"


def _text(path: bytes | str) -> str:
    return path.decode() if isinstance(path, bytes) else str(path)


def _image_paths(folder: Path) -> Iterator[str]:
    """Each folder once, however many links lead to it, or round in a circle."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield os.path.relpath(os.path.join(parent, name), folder)


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


class HFImages:
    """The image column of a Hugging Face dataset on disk."""

    def __init__(self, dataset: Any, *, uri: str) -> None:
        self._column = _image_column(dataset, uri)
        self._dataset = _undecoded(dataset, self._column)
        self._fingerprint = f"{len(dataset)} rows, datasets fingerprint {dataset._fingerprint}"
        self._uri = uri
        if not len(dataset):
            raise DataError(f"{uri} holds no row")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Image.Image:
        return self.read(index, as_rgb)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """See :class:`ImageSource`."""
        return decode(self._dataset[int(index)][self._column], f"{self._uri}[{index}]", to_image)

    def fingerprint(self) -> str:
        """The library's own fingerprint of the table."""
        return self._fingerprint


class HFStream:
    """The image column of a streamed Hugging Face dataset, split by process and by worker."""

    def __init__(self, dataset: Any, *, uri: str, rank: int, world_size: int) -> None:
        from datasets.distributed import split_dataset_by_node

        self._column = _image_column(dataset, uri)
        self._dataset = split_dataset_by_node(
            _undecoded(dataset, self._column), rank=rank, world_size=world_size
        )
        self._uri = uri
        self.num_parts = int(self._dataset.num_shards)

    def read(self, *, state: Mapping[str, Any] | None) -> Iterator[tuple[Encoded, dict[str, Any]]]:
        """See :class:`ImageStream`.

        The order is the stored one, in every epoch. Each reading has a copy of its own: a loaded
        state would stick to the next epoch too, and ``set_epoch`` does not help, as all workers
        share that number in memory and would change it under each other.
        """
        dataset = copy.deepcopy(self._dataset)
        if state is not None:
            dataset.load_state_dict(dict(state))
        for number, row in enumerate(dataset):
            name = f"{self._uri}, row {number} of this part"
            yield functools.partial(decode, row[self._column], name), dataset.state_dict()

    def fingerprint(self) -> str:
        """The URI: a stream is not read ahead to be hashed."""
        return f"stream {self._uri}"


def _undecoded(dataset: Any, column: str) -> Any:
    """Rows hold encoded bytes, of one column.

    One broken image must not end the iteration, and unused columns cost nothing.
    """
    return dataset.select_columns([column]).cast_column(column, _datasets().Image(decode=False))


def decode(
    encoded: Path | Mapping[str, Any], name: str, to_image: Callable[[Image.Image], ResultT]
) -> ResultT:
    """Decode a file, or a cell of an undecoded Hugging Face image column.

    Args:
        encoded: Path of the file, or the cell.
        name: How errors call it, if the cell does not say.
        to_image: As :func:`as_rgb`; given the opened image.

    Raises:
        BrokenImageError: If it cannot be decoded.
    """
    try:
        with Image.open(_file(encoded), formats=_formats()) as image:
            _refuse_bombs(image)
            return to_image(image)
    except Exception as error:
        stated = encoded.get("path") if isinstance(encoded, Mapping) else None
        raise BrokenImageError(stated or name, _reason(error)) from error


def _file(encoded: Path | Mapping[str, Any]) -> Any:
    if isinstance(encoded, Path):
        if encoded.exists() and not encoded.is_file():  # a pipe would be waited for
            raise ValueError("it is no plain file")
        return encoded
    return io.BytesIO(encoded["bytes"]) if encoded["bytes"] else encoded["path"]


@functools.cache
def _formats() -> list[str]:
    """All that Pillow knows, but for PostScript: to draw that, it starts an interpreter."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _refuse_bombs(image: Image.Image) -> None:
    """JPEGs may be twice as large, which Pillow checks: they are decoded smaller."""
    if image.width * image.height > _MOST_PIXELS and not is_jpeg(image):
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than {_MOST_PIXELS}; make it smaller"
        )


def as_rgb(image: Image.Image) -> Image.Image:
    """Decode to upright 8-bit RGB.

    EXIF rotation is applied, 16-bit and float greys are scaled, alpha is laid on white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _scaled_gray(image)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def is_jpeg(image: Image.Image) -> bool:
    """Whether an opened image can be decoded smaller than it is."""
    return image.format in {"JPEG", "MPO"}


def upright_jpeg_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after EXIF rotation of an opened JPEG, which need not be decoded for it.

    Other formats differ in who turns them, Pillow when it opens them or :func:`as_rgb`.
    """
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in {5, 6, 7, 8}
    return (image.height, image.width) if turned else (image.width, image.height)


def shrink_jpeg(image: Image.Image, times: float) -> None:
    """Let an opened JPEG be decoded at 1/2, 1/4 or 1/8, at most ``times`` smaller.

    By leaving out frequencies, which takes less time as well as memory.
    """
    if times >= 2:
        image.draft(None, (math.ceil(image.width / times), math.ceil(image.height / times)))  # pyright: ignore[reportArgumentType]


def _scaled_gray(image: Image.Image) -> Image.Image:
    values = np.array(image, np.float32)
    top = 65535.0 if values.max() > 255 else (255.0 if values.max() > 1 else 1.0)
    values *= 255 / top
    np.rint(values, out=values).clip(0, 255, out=values)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _image_column(dataset: Any, uri: str) -> str:
    columns = [
        name for name, kind in (dataset.features or {}).items() if type(kind).__name__ == "Image"
    ]
    if len(columns) != 1:
        known = ", ".join(dataset.features or {}) or "unknown"
        raise DataError(
            f"{uri} has {len(columns)} image columns (of: {known}); exactly one is needed"
        )
    return columns[0]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "hf: sources need the library `datasets`; pip install 'pcd_hub[recipes]'"
        ) from error
    return datasets


def load_from_disk(folder: str) -> Any:
    """One split of what ``datasets.save_to_disk`` wrote.

    Raises:
        DataError: If it is not there, or holds several splits.
    """
    library = _datasets()
    if not Path(folder).is_dir():
        raise DataError(f"no folder {folder}; hf-disk: takes what datasets.save_to_disk wrote")
    loaded = library.load_from_disk(folder)
    if isinstance(loaded, library.DatasetDict):
        raise DataError(
            f"{folder} holds the splits {', '.join(loaded)}; name one, "
            f"as hf-disk:{folder}/{next(iter(loaded))}"
        )
    return loaded


def load_dataset(text: str, *, streaming: bool) -> Any:
    """``ORG/NAME[:SPLIT]`` from the Hub, or a local folder.

    Raises:
        DataError: If it cannot be opened.
    """
    library = _datasets()
    name, _, split = text.partition(":")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.load_dataset(name, split=split or "train", streaming=streaming)
    except Exception as error:
        raise DataError(
            f"cannot open the dataset {name}, split {split or 'train'}: {_reason(error)}"
        ) from error


def load_split(uri: str, split: str, *, columns: Mapping[str, str]) -> Any:
    """One split of ``hf-disk:DIR`` or ``hf:ORG/NAME``, which has these columns.

    Args:
        uri: Of the whole dataset.
        split: Its name.
        columns: What must be there, by the option that names it.

    Raises:
        DataError: If it cannot be opened, or a column is missing.
    """
    scheme, _, rest = uri.partition(":")
    dataset = (
        load_from_disk(f"{rest}/{split}")
        if scheme == "hf-disk"
        else load_dataset(f"{rest}:{split}", streaming=False)
    )
    for column in columns.values():
        if column not in dataset.features:
            raise DataError(
                f"{uri} has no column '{column}'; it has {', '.join(dataset.features)}; "
                f"name them with {' and '.join(columns)}"
            )
    return dataset


def split_folder(parent: Path, split: str) -> Path:
    """The folder of a split.

    Raises:
        DataError: If it is not there.
    """
    folder = parent / split
    if not folder.is_dir():
        there = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        raise DataError(
            f"there is no {folder}; {parent} has {', '.join(there[:10]) or 'no splits'}"
        )
    return folder
