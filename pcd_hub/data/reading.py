"""Read and decode images in worker processes, in a given order."""

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

    The result does not depend on ``num_workers``, and torch's random state does not change.

    Args:
        read: Reads one item; must be picklable if there are workers.
        keys: The keys of each batch, taken a few batches ahead of what is yielded.
        num_workers: Number of worker processes; 0 reads in this process. Fewer are started if
            their batches would not fit into the shared memory.
        batch_bytes: Size of the largest batch.
        collate: Combines the items to a batch, in the worker; must be picklable.
        pin_memory: Copy the tensors of each batch into page-locked memory, for asynchronous copies
            to CUDA. A custom batch class needs a method ``pin_memory``.

    Raises:
        DataError: If ``read`` raised it, when its batch is reached.
    """
    batches = load_batches(
        _ItemDataset(read),
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


class _ItemDataset(Dataset[ItemT | DataError], Generic[KeyT, ItemT]):
    """Return an error instead of raising it, so that users do not get a worker's traceback."""

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
        errors = [item for item in items if isinstance(item, DataError)]
        return errors[0] if errors else self._collate(items)  # pyright: ignore[reportArgumentType]
