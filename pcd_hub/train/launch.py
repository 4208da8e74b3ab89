"""Start and shut down a recipe's Accelerator, on CPUs or GPUs, on one node or several."""

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    parse_flag_from_env,
)

from pcd_hub.data.workers import num_cores
from pcd_hub.errors import ConfigError, PCDHubError
from pcd_hub.evaluate.progress import LogHandler
from pcd_hub.train.configs.distill import SpeedConfig
from pcd_hub.train.environment import (
    check_launcher_settings,
    check_processes_are_joined,
    num_threads,
)
from pcd_hub.train.monitors.trackers import check_trackers
from pcd_hub.train.speed import check_precision, keep_freed_memory, mixed_precision

log = logging.getLogger("pcd_hub")

ResultT = TypeVar("ResultT")


def start_accelerator(
    *,
    trackers: tuple[str, ...] = (),
    speed: SpeedConfig | None = None,
    static_graph: bool = False,
) -> Accelerator:
    """Start an Accelerator that spans all launched processes.

    Machines without an accelerator need ``cpu=True``; otherwise the processes of a launch would not
    connect. The number of threads is also set there, because launchers give each process only one;
    a user's ``OMP_NUM_THREADS`` takes precedence.

    Args:
        trackers: Trackers in addition to metrics.jsonl.
        speed: Precision and memory; if not given, the launcher's precision and the system's
            defaults.
        static_graph: True if every step has one backward pass through the same parameters.

    Raises:
        ConfigError: If the launcher started more processes than the Accelerator sees or requests
            an unsupported feature, a tracker is unknown or not installed, or the device does not
            support the precision.
    """
    check_trackers(trackers)
    quiet_logs()
    check_launcher_settings(os.environ)
    on_cpu = not torch.accelerator.is_available()
    precision = None if speed is None else mixed_precision(speed)
    check_precision(precision, on_cpu=on_cpu)
    if on_cpu and speed is not None and speed.keep_memory:
        keep_freed_memory()
    torch.backends.cudnn.benchmark = speed is not None  # all views have one size
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_dir=Path(),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=static_graph)
        ],
    )
    _check_that_all_were_launched(accelerator)
    if on_cpu and (threads := num_threads(os.environ, num_cores())) is not None:
        torch.set_num_threads(threads)  # after the Accelerator, which sets them too
    if not accelerator.is_main_process:
        log.setLevel(logging.ERROR)  # the main process logs for all
    return accelerator


def finish(accelerator: Accelerator) -> None:
    """Wait for all processes and end the process group.

    Call it before work that only the main process does: the others would wait in a collective,
    which NCCL aborts after ten minutes. The trackers stay open until ``RunFolder.end_trackers``.

    Drop all references to the wrapped network first. A DistributedDataParallel that outlives its
    process group would destroy it later while holding the interpreter lock. Threads of the group
    may wait for that lock, and the process would never exit (seen with gloo and PyTorch 2.6).
    """
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    gc.collect()
    trackers, accelerator.trackers = accelerator.trackers, []
    accelerator.end_training()
    accelerator.trackers = trackers


def _check_that_all_were_launched(accelerator: Accelerator) -> None:
    check_processes_are_joined(os.environ, accelerator.num_processes)
    launched = os.environ.get("WORLD_SIZE", "1")
    # `accelerate launch` starts one process on CPUs, and sets both variables if more are requested.
    more_requested = parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ
    if more_requested and "WORLD_SIZE" not in os.environ:
        launched = "several"
    if launched != str(accelerator.num_processes):
        raise ConfigError(
            f"{launched} processes were launched, but each sees only {accelerator.num_processes}: "
            "they would train the same thing separately. "
            "On CPUs use torchrun --standalone --nproc_per_node N; see recipes/README.md"
        )


def quiet_logs() -> None:
    """Log this package's messages as plain lines, and only the warnings of other libraries.

    A program that has set up this package's logger on its own is not changed.
    """
    if log.propagate:
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogHandler()])
    for library in ("httpx", "httpx2", "filelock", "timm", "fsspec", "matplotlib"):
        logging.getLogger(library).setLevel(logging.WARNING)


def on_main_process(accelerator: Accelerator, decide: Callable[[], ResultT]) -> ResultT:
    """Call ``decide`` in the main process, and return its result on every process.

    Raises:
        PCDHubError: On every process, if ``decide`` raises it.
    """
    outcome: object = None
    if accelerator.is_main_process:
        try:
            outcome = decide()
        except PCDHubError as error:
            outcome = error  # raised below on every process: the others are waiting
    outcome = from_main_process(accelerator, outcome)
    if isinstance(outcome, PCDHubError):
        raise outcome
    return cast("ResultT", outcome)


def from_main_process(accelerator: Accelerator, value: object) -> object:
    """Return the main process's ``value`` on every process."""
    box = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(box)
    return box[0]
