"""Keeps loader processes within ``/dev/shm``, through which they hand batches over.

Docker gives a container 64 MB of it. A batch that does not fit is lost in a thread of the worker,
and the training process would wait for it for ever.
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
    """0: the training process reads by itself."""
    prefetch: int
    """Batches that each prepares ahead."""


def fit_workers(
    num_workers: int, *, prefetch: int, batch_bytes: int, batches_held: int = 3
) -> Workers:
    """Loader processes whose batches fit into the free shared memory; a smaller number is logged.

    The batches ahead are cut first, then the processes. Processes on one machine
    (``LOCAL_WORLD_SIZE``) share the memory.

    Args:
        num_workers: How many are wanted; 0 for none.
        prefetch: Batches that each should prepare ahead, at least 1.
        batch_bytes: Size of the largest batch.
        batches_held: Batches that the training process still uses.
    """
    free = _free_bytes()
    wanted = Workers(num_workers, prefetch)
    if not num_workers or free is None:
        return wanted
    free = int(_USABLE_SHARE * free / max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))
    fitting = max(0, free // max(1, batch_bytes) - batches_held)
    if fitting >= num_workers * prefetch:
        return wanted
    count = min(num_workers, fitting)
    fitted = Workers(count, fitting // count if count else prefetch)
    needed = batch_bytes * (num_workers * prefetch + batches_held)
    log.warning(
        "%s has room for %s, and %d workers with %d batches of %s each need %s: %s. "
        "Make it larger (docker run --shm-size 32g), or ask for --data.num-workers 0",
        *(_FOLDER, _in_words(free), num_workers, prefetch, _in_words(batch_bytes)),
        _in_words(needed),
        f"{count} with {fitted.prefetch} instead" if count else "the training process reads alone",
    )
    return fitted


def _free_bytes() -> int | None:
    """Free shared memory; None where the system has no such folder."""
    try:
        return shutil.disk_usage(_FOLDER).free
    except OSError:
        return None


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@dataclasses.dataclass(frozen=True)
class ToSharedMemory:
    """A ``collate_fn`` that moves its batch into shared memory, if a worker calls it.

    The worker's queue would do so as well, but in a thread whose errors reach nobody.
    """

    collate: Callable[[Any], Any]

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        if get_worker_info() is not None:
            try:
                for tensor in _tensors(batch):
                    tensor.share_memory_()
            except RuntimeError as error:
                return _NoRoom(first_line(error))
        return batch


def received(batch: Any) -> Any:
    """``batch``, as it arrives in the training process.

    Raises:
        DataError: If its worker found no room for it.
    """
    if isinstance(batch, _NoRoom):
        raise DataError(
            f"a loader process finds no room in {_FOLDER} ({batch.reason}); make it larger (docker "
            "run --shm-size 32g) or use --data.num-workers 0, and go on with --run.resume"
        )
    return batch


@dataclasses.dataclass(frozen=True)
class _NoRoom:
    reason: str


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers and dataclasses."""
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
