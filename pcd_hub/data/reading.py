"""Images read and decoded by worker processes, in a given order."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import Dataset

from pcd_hub.data.shared_memory import fit_workers
from pcd_hub.data.workers import load_batches
from pcd_hub.errors import DataError

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")
BatchT = TypeVar("BatchT")


def read_batches(
    read: Callable[[KeyT], ItemT],
    keys: Iterable[list[KeyT]],
    *,
    num_workers: int,
    batch_bytes: int,
    collate: Callable[[list[ItemT]], BatchT] = list,
    pin_memory: bool = False,
) -> Iterator[BatchT]:
    """Yield ``collate([read(key) for key in batch])`` for every batch of ``keys``, in order.

    The result does not depend on ``num_workers``. Nothing is drawn from torch's random state.

    Args:
        read: Reads one item; must be picklable if there are workers.
        keys: The keys of each batch, taken a few batches ahead of what is yielded.
        num_workers: Processes that read; 0 to read in this process. Fewer are started where their
            batches would not fit into the shared memory.
        batch_bytes: Size of the largest batch.
        collate: Makes a batch of the items, in the worker; must be picklable.
        pin_memory: Whether the tensors of a batch are page-locked, for asynchronous copies to CUDA.
            A batch of a class of its own needs a method ``pin_memory``.

    Raises:
        DataError: As ``read`` raised it, when its batch is reached.
    """
    batches = load_batches(
        _Items(read),
        workers=fit_workers(num_workers, prefetch=2, batch_bytes=max(1, batch_bytes)),
        batch_sampler=keys,
        collate_fn=_Collate(collate),
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
    )
    for batch in batches:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _Items(Dataset[ItemT | DataError], Generic[KeyT, ItemT]):
    """Hands an error over instead of raising it: a worker's traceback says nothing to a user."""

    def __init__(self, read: Callable[[KeyT], ItemT]) -> None:
        self._read = read

    def __getitem__(self, key: KeyT) -> ItemT | DataError:
        try:
            return self._read(key)
        except DataError as error:
            return error


class _Collate(Generic[ItemT, BatchT]):
    def __init__(self, collate: Callable[[list[ItemT]], BatchT]) -> None:
        self._collate = collate

    def __call__(self, items: list[ItemT | DataError]) -> BatchT | DataError:
        broken = [item for item in items if isinstance(item, DataError)]
        return broken[0] if broken else self._collate(items)  # pyright: ignore[reportArgumentType]
