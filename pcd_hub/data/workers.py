"""Starts a DataLoader that fits into the shared memory and outlives a request to stop.

Containers, SLURM, torchrun and a terminal signal a whole process group. The training process
finishes its step and saves; until then it needs its loader's processes, so these ignore what it
does not send them itself.
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

from pcd_hub.data.shared_memory import ToSharedMemory, Workers, received

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
"""What asks a training run to stop."""


def load_batches(
    dataset: Dataset[Any], *, workers: Workers, collate_fn: Callable[[Any], Any], **options: Any
) -> Iterator[Any]:
    """Start a ``DataLoader``, whose processes ignore :data:`STOP_SIGNALS` from their first moment.

    They still end with their parent, at once when it asks them to: torch and Python end them by
    SIGTERM. On systems without ``sigwaitinfo`` (macOS, Windows) SIGTERM from anyone ends them.

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
        worker_init_fn=_ignore_stop_signals,
        **options,
    )
    context = multiprocessing.get_context(options.get("multiprocessing_context"))
    if workers.processes and context.get_start_method() != "fork":
        resource_tracker.ensure_running()  # it would unblock signals when it starts below
    with _stop_signals_blocked():  # a new process inherits what is blocked
        return map(received, iter(loader))


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_stop_signals(worker: int) -> None:
    """In a worker, whose signals are blocked already unless its start method lost the mask."""
    del worker
    for signum in STOP_SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    """As torch's own handler of SIGTERM, except that others' signals are ignored."""
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != getattr(parent, "pid", None):
        pass
    os._exit(0)


def default_workers(device: torch.device) -> int:
    """Loader processes: on CPUs the cores compute; beside an accelerator they have nothing else."""
    return 1 if device.type == "cpu" else min(16, max(1, num_cores() - 1))


def num_cores(environ: Mapping[str, str] | None = None, *, usable: int | None = None) -> int:
    """Cores for one process of a launch; at least 1.

    Args:
        environ: Of this process; ``os.environ`` if not given.
        usable: Cores on which this process may run; asked of the system if not given.
    """
    environ = os.environ if environ is None else environ
    usable = _usable_cores() if usable is None else usable
    sharing = count_of(environ, "LOCAL_WORLD_SIZE")
    if per_task := count_of(environ, "SLURM_CPUS_PER_TASK", default=0):
        usable = min(usable, per_task)
        if count_of(environ, "SLURM_STEP_NUM_TASKS") >= count_of(environ, "WORLD_SIZE"):
            sharing = 1  # each process is a task, with these cores for itself
    return max(1, usable // sharing)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_of(environ: Mapping[str, str], name: str, *, default: int = 1) -> int:
    """A count that a launcher left in the environment; ``default`` if there is none."""
    value = environ.get(name, "")
    return max(default, int(value)) if value.isdecimal() else default
