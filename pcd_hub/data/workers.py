"""Starts a DataLoader whose batches fit into the shared memory."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from pcd_hub.data.shared_memory import ToSharedMemory, Workers, received


def load_batches(
    dataset: Dataset[Any], *, workers: Workers, collate_fn: Callable[[Any], Any], **options: Any
) -> Iterator[Any]:
    """Start a ``DataLoader``.

    Args:
        dataset: As the DataLoader takes it.
        workers: Processes, as :func:`fit_workers` allows them.
        collate_fn: Samples to batch.
        options: Others of the DataLoader.

    Raises:
        DataError: While it is read, if shared memory becomes too small for a batch.
    """
    loader = DataLoader(
        dataset,
        num_workers=workers.processes,
        prefetch_factor=workers.prefetch if workers.processes else None,
        collate_fn=ToSharedMemory(collate_fn),
        **options,
    )
    return map(received, iter(loader))
