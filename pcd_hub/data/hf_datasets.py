"""Opens Hugging Face datasets: saved on disk, on the Hub, in a local folder, or streamed.

========================================  ======================================================
``hf-disk:DIR[/SPLIT]``                   what ``datasets.save_to_disk`` wrote
``hf:ORG/NAME[/CONFIG][:SPLIT]``          downloaded whole; ``DIR[/CONFIG][:SPLIT]`` works too
``hf-stream:ORG/NAME[/CONFIG][:SPLIT]``   the same, read as it arrives
========================================  ======================================================

The split is ``train`` where none is named.
"""

import copy
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from pcd_hub.data.decoding import BrokenImageError, ResultT, as_rgb, decode, reason
from pcd_hub.data.uris import is_dir, local_path
from pcd_hub.errors import DataError

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Last bytes of an Arrow stream that was written to its end."""


@runtime_checkable
class Encoded(Protocol):
    """One image of a stream, not yet opened."""

    def __call__(self, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """As ``ImageSource.read``."""
        ...


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
        """See ``ImageSource.read``; errors name the row, as rows may share a path."""
        name = f"{self._uri}[{index}]"
        try:
            cell = self._dataset[int(index)][self._column]
        except Exception as error:  # a damaged table
            raise BrokenImageError(name, reason(error)) from error
        return decode(cell, name, to_image)

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
        self._fingerprint = f"stream {uri}, {dataset.num_shards} files"
        self.num_parts = int(self._dataset.num_shards)

    def read(self, *, state: Mapping[str, Any] | None) -> Iterator[tuple[Encoded, dict[str, Any]]]:
        """See ``ImageStream.read``.

        The order is the stored one, in every epoch. Each reading has a copy of its own: a loaded
        state would stick to the next epoch too, and ``set_epoch`` does not help, as all workers
        share that number in memory and would change it under each other.

        Raises:
            DataError: If the rows end in an error, as a damaged file or a lost connection does.
        """
        dataset = copy.deepcopy(self._dataset)
        if state is not None:
            dataset.load_state_dict(dict(state))
        for number, row in enumerate(self._rows(dataset)):
            name = f"{self._uri}, row {number} of this part"
            yield functools.partial(decode, row[self._column], name), dataset.state_dict()

    def _rows(self, dataset: Any) -> Iterator[Mapping[str, Any]]:
        try:
            yield from dataset
        except Exception as error:
            raise DataError(f"{self._uri} cannot be read to its end: {reason(error)}") from error

    def fingerprint(self) -> str:
        """The URI and the number of files: a stream is not read ahead to be hashed."""
        return self._fingerprint


def _undecoded(dataset: Any, column: str) -> Any:
    """Rows hold encoded bytes, of one column.

    One broken image must not end the iteration, and unused columns cost nothing.
    """
    return dataset.select_columns([column]).cast_column(column, _datasets().Image(decode=False))


def _image_column(dataset: Any, uri: str) -> str:
    features = dataset.features or {}
    columns = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if len(columns) != 1:
        these = f" ({', '.join(columns)})" if columns else ""
        raise DataError(
            f"{uri} has {len(columns)} image columns{these} among its columns "
            f"{', '.join(features) or '(unknown)'}; exactly one is needed: save it with one, as "
            "dataset.select_columns(['image']).save_to_disk(DIR) does"
        )
    return columns[0]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "hf: sources need the library `datasets`; pip install 'pcd_hub[train]'"
        ) from error
    return datasets


def load_from_disk(place: str) -> Any:
    """Load one split of what ``datasets.save_to_disk`` wrote.

    Raises:
        DataError: If it is not there or damaged, or holds several splits.
    """
    library, folder = _datasets(), local_path(place)
    if not is_dir(folder):
        raise DataError(
            f"no folder {folder}{_splits_beside(folder)}; hf-disk: takes what "
            "datasets.save_to_disk wrote"
        )
    try:
        loaded = library.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"{folder} is no dataset that datasets.save_to_disk wrote to its end "
            f"({reason(error)}); save it again"
        ) from error
    if isinstance(loaded, library.DatasetDict):
        raise DataError(
            f"{folder} holds the splits {', '.join(loaded)}; name one, "
            f"as hf-disk:{place}/{next(iter(loaded))}"
        )
    for file in loaded.cache_files:
        _check_written_to_its_end(Path(file["filename"]))
    return loaded


def _splits_beside(folder: Path) -> str:
    """List the splits if the missing ``folder`` should be one of a saved ``DatasetDict``."""
    if not is_dir(folder.parent):
        return ""
    splits = sorted(file.parent.name for file in folder.parent.glob("*/state.json"))
    return f" ({folder.parent} holds the splits {', '.join(splits)})" if splits else ""


def _check_written_to_its_end(table: Path) -> None:
    """A stream cut between two of its batches opens as a shorter one."""
    with table.open("rb") as file:
        file.seek(-len(_END_OF_STREAM), 2)
        if file.read() != _END_OF_STREAM:
            raise DataError(f"{table} is cut short; save the dataset again")


def load_dataset(text: str, *, streaming: bool) -> Any:
    """Load ``ORG/NAME[/CONFIG][:SPLIT]`` from the Hub, or a local folder.

    Raises:
        DataError: If it cannot be opened; the message lists the configurations or splits if one
            must be chosen.
    """
    library = _datasets()
    name, config, split = _parsed(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:
        choices = _choices(library, name, config, split) if isinstance(error, ValueError) else ""
        which = f"{name}, configuration {config}" if config else name
        raise DataError(
            f"cannot open the dataset {which}, split {split}: {choices or reason(error)}"
        ) from error


def _parsed(text: str) -> tuple[str, str | None, str]:
    """Split ``NAME[/CONFIG][:SPLIT]``; a local path may hold colons and slashes itself."""
    for end in (len(text), *(found.start() for found in reversed([*re.finditer(":", text)]))):
        name, split = text[:end], text[end + 1 :] or "train"
        parent, _, config = name.rpartition("/")
        if is_dir(local_path(name)):
            return str(local_path(name)), None, split
        if "/" in parent and ":" not in config and is_dir(local_path(parent)):
            return str(local_path(parent)), config, split
    name, _, split = text.partition(":")
    configured = re.fullmatch(r"([^/]+/[^/]+)/([^/]+)", name)
    if configured:
        return configured[1], configured[2], split or "train"
    return name, None, split or "train"


def _choices(library: Any, name: str, config: str | None, split: str) -> str:
    """List the configurations or splits, if it is one of these that has to be chosen."""
    place = f"{name}/{config}" if config else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            configs = library.get_dataset_config_names(name)
            splits = _splits(library, name, config)
    except Exception:  # then the first error says more
        return ""
    if not splits:
        return (
            f"it has the configurations {', '.join(configs)}; name one, as hf:{name}/{configs[0]}"
        )
    if split.partition("[")[0] in splits:
        return ""
    return f"it has the splits {', '.join(splits)}; name one, as hf:{place}:{splits[0]}"


def _splits(library: Any, name: str, config: str | None) -> list[str]:
    try:
        return library.get_dataset_split_names(name, config)
    except ValueError:  # no such configuration
        return []


def load_split(uri: str, split: str, *, columns: Mapping[str, str]) -> Any:
    """Load one split of ``hf-disk:DIR`` or ``hf:ORG/NAME[/CONFIG]``, which has these columns.

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
