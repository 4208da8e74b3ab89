"""Start a DataLoader that fits into the shared memory and keeps running during a stop request.

Containers, SLURM, torchrun and terminals signal a whole process group. The training process
finishes its step and saves; until then it needs its loader processes, so these ignore all signals
that it does not send itself.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pcd_hub.data.shared_memory import CollateToSharedMemory, Workers, check_received
from pcd_hub.errors import DataError

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
)
"""Signals that request a training run to stop."""


def _as_read(batch: Any) -> Any:
    return batch


def load_batches(
    dataset: Dataset[Any],
    *,
    workers: Workers,
    collate_fn: Callable[[Any], Any] = _as_read,
    **options: Any,
) -> Iterator[Any]:
    """Start a ``DataLoader`` whose processes ignore :data:`STOP_SIGNALS` from the start.

    They still end with their parent, and at once when it sends SIGTERM, as torch and Python do. On
    systems without ``sigwaitinfo`` (macOS, Windows) SIGTERM from any process ends them.

    Args:
        dataset: The DataLoader's dataset.
        workers: Number of processes and prefetched batches (see :func:`fit_workers`).
        collate_fn: Combines samples to a batch; without ``batch_size`` they are batches as read.
        options: Further options of the DataLoader.

    Raises:
        DataError: During iteration, if a dataset raises it or a batch does not fit into the shared
            memory.
    """
    loader = DataLoader(
        dataset,
        num_workers=workers.processes,
        prefetch_factor=workers.prefetch if workers.processes else None,
        collate_fn=CollateToSharedMemory(collate_fn),
        worker_init_fn=_ignore_stop_signals,
        **options,
    )
    context = multiprocessing.get_context(options.get("multiprocessing_context"))
    if workers.processes and context.get_start_method() != "fork":
        resource_tracker.ensure_running()  # started below, it would unblock the signals
    with _block_stop_signals():  # new processes inherit the mask
        batches = iter(loader)
    return _with_short_errors(map(check_received, batches))


def _with_short_errors(batches: Iterator[Any]) -> Iterator[Any]:
    """Raise a worker's DataError with its own message, without the traceback that torch adds."""
    try:
        yield from batches
    except DataError as error:
        lines = str(error).strip().splitlines()
        if not lines[0].startswith("Caught "):
            raise
        raise DataError(lines[-1].partition("DataError: ")[2]) from error


@contextlib.contextmanager
def _block_stop_signals() -> Iterator[None]:
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_stop_signals(worker: int) -> None:
    """Ignore stop signals in a worker; it inherits their mask, except under some start methods."""
    del worker
    for signum in STOP_SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    """Exit on SIGTERM as torch's handler does, but only if the parent sent it."""
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != getattr(parent, "pid", None):
        pass
    os._exit(0)


def default_workers(device: torch.device) -> int:
    """Return the default number of loader processes: 1 on CPUs, where the cores also train."""
    return 1 if device.type == "cpu" else min(16, max(1, num_cores() - 1))


def num_cores(environ: Mapping[str, str] | None = None, *, usable: int | None = None) -> int:
    """Return the number of cores for one process of a launch; at least 1.

    Args:
        environ: The process environment; ``os.environ`` if not given.
        usable: Number of cores on which this process may run; the system's answer if not given.
    """
    environ = os.environ if environ is None else environ
    usable = _usable_cores() if usable is None else usable
    sharing = read_count(environ, "LOCAL_WORLD_SIZE")
    if per_task := read_count(environ, "SLURM_CPUS_PER_TASK", default=0):
        usable = min(usable, per_task)
        if read_count(environ, "SLURM_STEP_NUM_TASKS") >= read_count(environ, "WORLD_SIZE"):
            sharing = 1  # each process is a task that does not share its cores
    return max(1, usable // sharing)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_count(environ: Mapping[str, str], name: str, *, default: int = 1) -> int:
    """Return a count that a launcher set in the environment; ``default`` if it did not."""
    value = environ.get(name, "")
    return max(default, int(value)) if value.isdecimal() else default
