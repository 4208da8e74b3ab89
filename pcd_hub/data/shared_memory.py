"""Keep the batches of loader processes within the shared memory in ``/dev/shm``.

Docker gives a container 64 MB of it. The error of a batch that does not fit would be lost in a
thread of the worker, and the training process would wait forever.
"""

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import get_worker_info

from pcd_hub.errors import DataError, first_line

log = logging.getLogger("pcd_hub")

_FOLDER = "/dev/shm"  # noqa: S108
_USABLE_SHARE = 0.9


class Workers(NamedTuple):
    """Loader processes of one training process."""

    processes: int
    """Number of processes; with 0, the training process reads."""
    prefetch: int
    """Number of batches that each process prepares ahead."""


def fit_workers(
    num_workers: int, *, prefetch: int, batch_bytes: int, batches_held: int = 3
) -> Workers:
    """Reduce the number of loader processes so that their batches fit the free shared memory.

    Prefetched batches are reduced first, then processes; a reduction is logged. The training
    processes of one machine (``LOCAL_WORLD_SIZE``) share the memory.

    Args:
        num_workers: Requested number of processes.
        prefetch: Requested number of batches that each process prepares ahead, at least 1.
        batch_bytes: Size of the largest batch.
        batches_held: Number of batches that the training process uses at once.
    """
    free = _free_bytes()
    requested = Workers(num_workers, prefetch)
    if not num_workers or free is None:
        return requested
    free = int(_USABLE_SHARE * free / max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))
    fitting = max(0, free // max(1, batch_bytes) - batches_held)
    if fitting >= num_workers * prefetch:
        return requested
    count = min(num_workers, fitting)
    fitted = Workers(count, fitting // count if count else prefetch)
    needed = batch_bytes * (num_workers * prefetch + batches_held)
    log.warning(
        "%s has %s free, but %d workers with %d batches of %s each need %s: using %s. "
        "Increase it (docker run --shm-size 32g), or set --data.num-workers 0",
        *(_FOLDER, _format_bytes(free), num_workers, prefetch, _format_bytes(batch_bytes)),
        _format_bytes(needed),
        f"{count} workers with {fitted.prefetch} batches" if count else "no workers",
    )
    return fitted


def _free_bytes() -> int | None:
    """Return the free shared memory; None if the system has no such folder."""
    try:
        return shutil.disk_usage(_FOLDER).free
    except OSError:
        return None


def _format_bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@dataclasses.dataclass(frozen=True)
class CollateToSharedMemory:
    """A ``collate_fn`` that moves its batch into shared memory if a worker calls it.

    The worker's queue would do so too, but in a thread whose errors are lost.
    """

    collate: Callable[[Any], Any]

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        if get_worker_info() is not None:
            try:
                for tensor in _tensors(batch):
                    tensor.share_memory_()
            except RuntimeError as error:
                return _OutOfSharedMemory(first_line(error))
        return batch


def check_received(batch: Any) -> Any:
    """Return ``batch`` as it arrives in the training process.

    Raises:
        DataError: If it did not fit into the shared memory of its worker.
    """
    if isinstance(batch, _OutOfSharedMemory):
        raise DataError(
            f"a loader process ran out of shared memory in {_FOLDER} ({batch.reason}); increase it "
            "(docker run --shm-size 32g) or set --data.num-workers 0, then resume the run"
        )
    return batch


@dataclasses.dataclass(frozen=True)
class _OutOfSharedMemory:
    reason: str


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested containers and dataclasses."""
    parts: Any = ()
    match value:
        case Tensor():
            yield value
        case dict():
            parts = value.values()
        case list() | tuple():
            parts = value
        case _ if dataclasses.is_dataclass(value):
            parts = vars(value).values()
    for part in parts:
        yield from _tensors(part)
