"""Open Hugging Face datasets: saved on disk, on the Hub, in a local folder, or streamed.

==================================================  ============================================
``hf-disk:DIR[/SPLIT][#COLUMN]``                    a dataset saved by ``datasets.save_to_disk``
``hf:ORG/NAME[/CONFIG][:SPLIT][#COLUMN]``           downloaded first, or a local folder ``DIR``
``hf-stream:ORG/NAME[/CONFIG][:SPLIT][#COLUMN]``    the same, streamed
==================================================  ============================================

The default split is ``train``; the column must be named if there are several with images.
"""

import copy
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pcd_hub.data.decoding import BrokenImageError, ResultT, decode, describe_error
from pcd_hub.data.sources.protocols import EncodedImage, ImageSource
from pcd_hub.data.sources.remote import watch_forks
from pcd_hub.data.sources.uris import is_dir, local_path
from pcd_hub.errors import DataError, pip_install

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Last bytes of a complete Arrow stream."""


class HFImages(ImageSource):
    """One image column of a Hugging Face dataset on disk.

    Args:
        dataset: The dataset.
        uri: Name in errors.
        column: Name of the column; the only image column if not given.
    """

    def __init__(self, dataset: Any, *, uri: str, column: str | None = None) -> None:
        self._column = _find_image_column(dataset, uri, column)
        self._dataset = _select_encoded(dataset, self._column)
        self._fingerprint = f"{len(dataset)} rows, datasets fingerprint {dataset._fingerprint}"
        self._uri = uri
        if not len(dataset):
            raise DataError(f"{uri} has 0 rows: expected at least 1")

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Decode row ``index`` by ``to_image``; errors name the row, as rows may share a path."""
        name = self.full_name(index)
        try:
            cell = self._dataset[int(index)][self._column]
        except Exception as error:  # a damaged table
            raise BrokenImageError(name, describe_error(error)) from error
        return decode(cell, name, to_image)

    def name(self, index: int) -> str:
        """Return the number of the row as text."""
        return str(index)

    def full_name(self, index: int) -> str:
        """Return the name of row ``index`` in errors."""
        return f"{self._uri}[{index}]"

    def fingerprint(self) -> str:
        """Return the fingerprint of the table that ``datasets`` computes."""
        return self._fingerprint


class HFStream:
    """One image column of a streamed Hugging Face dataset, split by process and worker.

    Args:
        dataset: The dataset.
        uri: Name in errors.
        rank: Rank of this process.
        world_size: Number of processes.
        column: Name of the column; the only image column if not given.
    """

    def __init__(
        self, dataset: Any, *, uri: str, rank: int, world_size: int, column: str | None = None
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        self._column = _find_image_column(dataset, uri, column)
        self._dataset = split_dataset_by_node(
            _select_encoded(dataset, self._column), rank=rank, world_size=world_size
        )
        self._uri = uri
        self._fingerprint = f"stream {uri}, {dataset.num_shards} files"
        self.num_parts = int(self._dataset.num_shards)

    def read(
        self, *, state: Mapping[str, Any] | None
    ) -> Iterator[tuple[EncodedImage, dict[str, Any]]]:
        """Read the images from ``state`` on in the stored order; see ``ImageStream.read``.

        Each call reads from a copy of the dataset, because a loaded state would persist into the
        next epoch, and ``set_epoch`` changes a number that all workers share in memory.

        Raises:
            DataError: If reading fails, for example at a damaged file or a lost connection.
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
            raise DataError(
                f"{self._uri} cannot be read completely: {describe_error(error)}"
            ) from error

    def fingerprint(self) -> str:
        """Return the URI and the number of files; the content is not hashed."""
        return self._fingerprint


def _select_encoded(dataset: Any, column: str) -> Any:
    """Select one image column, not decoded: a broken image must not end the iteration."""
    watch_forks()  # an image may be behind a URL
    images = dataset.select_columns([column])
    return images.cast_column(column, _import_datasets().Image(decode=False))


def _find_image_column(dataset: Any, uri: str, column: str | None) -> str:
    """Return the column to read: ``column``, or the only one with images.

    Raises:
        DataError: If there is no such column, or it must be chosen; the message lists them.
    """
    features = dataset.features or {}
    columns = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if column is not None and (column in features or not features):
        return column
    if column is None and len(columns) == 1:
        return columns[0]
    names = f" ({', '.join(columns)})" if columns else ""
    expected = "exactly 1" if column is None else f"a column '{column}'"
    remedy = (
        f"name one, for example {uri.removesuffix(f'#{column}')}#{columns[0]}"
        if columns
        else "save it with one by dataset.select_columns(['image']).save_to_disk(DIR)"
    )
    raise DataError(
        f"{uri} has {len(columns)} image columns{names} among its columns "
        f"{', '.join(features) or '(unknown)'}: expected {expected}; {remedy}"
    )


def split_column(text: str) -> tuple[str, str | None]:
    """Split ``NAME[#COLUMN]``; a local path may contain ``#``."""
    name, mark, column = text.rpartition("#")
    folders = (text, text.rpartition(":")[0])  # with a split: DIR:SPLIT
    is_path = "/" in column or any("#" in each and is_dir(local_path(each)) for each in folders)
    return (text, None) if not mark or is_path else (name, column)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "the library `datasets`, which hf: sources need, is not installed; "
            + pip_install("train")
        ) from error
    return datasets


def load_from_disk(place: str) -> Any:
    """Load one split of a dataset saved by ``datasets.save_to_disk``.

    Raises:
        DataError: If it does not exist, is damaged, or contains several splits.
    """
    library, folder = _import_datasets(), local_path(place)
    if not is_dir(folder):
        raise DataError(
            f"no folder {folder}{_list_sibling_splits(folder)}: expected a dataset saved by "
            "datasets.save_to_disk"
        )
    try:
        loaded = library.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"{folder} is not a complete dataset saved by datasets.save_to_disk "
            f"({describe_error(error)}); save it again"
        ) from error
    if isinstance(loaded, library.DatasetDict):
        raise DataError(
            f"{folder} has the splits {', '.join(loaded)}; choose one, "
            f"for example hf-disk:{place}/{next(iter(loaded))}"
        )
    for file in loaded.cache_files:
        _check_complete(Path(file["filename"]))
    return loaded


def _list_sibling_splits(folder: Path) -> str:
    """List the splits of a saved ``DatasetDict`` that lacks the split ``folder``."""
    if not is_dir(folder.parent):
        return ""
    splits = sorted(file.parent.name for file in folder.parent.glob("*/state.json"))
    return f" ({folder.parent} has the splits {', '.join(splits)})" if splits else ""


def _check_complete(table: Path) -> None:
    """Check the end of a table: a stream truncated between two batches opens without an error."""
    with table.open("rb") as file:
        file.seek(-len(_END_OF_STREAM), 2)
        if file.read() != _END_OF_STREAM:
            raise DataError(f"{table} is truncated; save the dataset again")


def load_dataset(text: str, *, streaming: bool) -> Any:
    """Load ``ORG/NAME[/CONFIG][:SPLIT]`` from the Hub, or a local folder.

    Raises:
        DataError: If it cannot be opened; the message lists the configurations or splits if one
            must be chosen.
    """
    library = _import_datasets()
    name, config, split = _parse_name(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:
        choices = ""
        if isinstance(error, ValueError):
            choices = _list_choices(library, name, config, split)
        full_name = f"{name}, configuration {config}" if config else name
        raise DataError(
            f"cannot open the dataset {full_name}, split {split}: "
            f"{choices or describe_error(error)}"
        ) from error


def _parse_name(text: str) -> tuple[str, str | None, str]:
    """Split ``NAME[/CONFIG][:SPLIT]``; a local path may contain colons and slashes."""
    for end in (len(text), *(colon.start() for colon in reversed([*re.finditer(":", text)]))):
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


def _list_choices(library: Any, name: str, config: str | None, split: str) -> str:
    """List the configurations or splits if one of them must be chosen."""
    place = f"{name}/{config}" if config else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            configs = library.get_dataset_config_names(name)
            splits = _splits(library, name, config)
    except Exception:  # the original error is more useful
        return ""
    if not splits:
        return (
            f"it has the configurations {', '.join(configs)}; choose one, for example "
            f"hf:{name}/{configs[0]}"
        )
    if split.partition("[")[0] in splits:
        return ""
    return f"it has the splits {', '.join(splits)}; choose one, for example hf:{place}:{splits[0]}"


def _splits(library: Any, name: str, config: str | None) -> list[str]:
    try:
        return library.get_dataset_split_names(name, config)
    except ValueError:  # no such configuration
        return []


def load_split(uri: str, split: str, *, columns: Mapping[str, str]) -> Any:
    """Load one split of ``hf-disk:DIR`` or ``hf:ORG/NAME[/CONFIG]`` and check its columns.

    Args:
        uri: URI of the whole dataset.
        split: Name of the split.
        columns: Required column for each command-line option that sets one.

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
                f"{uri} has no column '{column}', only {', '.join(dataset.features)}; "
                f"set {' and '.join(columns)}"
            )
    return dataset
