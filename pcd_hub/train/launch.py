"""One Accelerator for every recipe: one CPU, several (gloo), GPUs, nodes; no launches that lie."""

import gc
import logging
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    parse_flag_from_env,
)

from pcd_hub.data.workers import num_cores
from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.distill import SpeedConfig
from pcd_hub.train.environment import (
    check_launcher_settings,
    check_processes_are_joined,
    num_threads,
)
from pcd_hub.train.monitors.trackers import check_trackers
from pcd_hub.train.speed import check_precision, keep_freed_memory, mixed_precision

log = logging.getLogger("pcd_hub")


def start_accelerator(
    *,
    trackers: tuple[str, ...] = (),
    speed: SpeedConfig | None = None,
    static_graph: bool = False,
) -> Accelerator:
    """An Accelerator that really spans all launched processes.

    On machines without an accelerator it must be told ``cpu=True``, or every process of a launch
    believes it is alone. There the threads are set too, unless ``OMP_NUM_THREADS`` says how many:
    launchers leave each process with one.

    Args:
        trackers: Beside metrics.jsonl.
        speed: Precision and memory; the launcher's precision and the system's habits if not given.
        static_graph: Whether every step has one backward pass through the same parameters.

    Raises:
        ConfigError: If the launcher started more processes than the Accelerator sees or asks for
            what no recipe does, a tracker is not known or not installed, or the machine does not
            have the precision.
    """
    check_trackers(trackers)
    quiet_logs()
    check_launcher_settings(os.environ)
    on_cpu = not torch.accelerator.is_available()
    precision = None if speed is None else mixed_precision(speed)
    check_precision(precision, on_cpu=on_cpu)
    if on_cpu and speed is not None and speed.keep_memory:
        keep_freed_memory()
    torch.backends.cudnn.benchmark = speed is not None  # views are all of one size
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
        torch.set_num_threads(threads)  # the last word: an Accelerator of several sets them too
    if not accelerator.is_main_process:
        log.setLevel(logging.ERROR)  # what is said is said once
    return accelerator


def finish(accelerator: Accelerator) -> None:
    """Wait for the others, and part; the wrapped network must be out of everybody's reach by now.

    It comes before what the main process does alone: the others would wait for it in a collective,
    which NCCL ends with an error after ten minutes. The trackers go on; ``RunFolder.end_trackers``
    ends them.

    DistributedDataParallel that outlives its process group ends it later by itself, holding the
    interpreter's lock, and waits for threads of the group that may want that lock: a process that
    has done everything and never exits (seen with gloo and PyTorch 2.6).
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
    # `accelerate launch` starts one process on CPUs, and sets both if it was asked for more.
    asked_for_more = parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ
    if asked_for_more and "WORLD_SIZE" not in os.environ:
        launched = "several"
    if launched != str(accelerator.num_processes):
        raise ConfigError(
            f"{launched} processes were launched "
            f"but each believes to be one of {accelerator.num_processes}: "
            "they would train the same thing apart. "
            "On CPUs use torchrun --standalone --nproc_per_node N; see recipes/README.md"
        )


def quiet_logs() -> None:
    """Our own messages as plain lines; of the libraries only warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for chatty in ("httpx", "httpx2", "filelock", "timm", "fsspec", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def from_main_process(accelerator: Accelerator, value: object) -> object:
    """The main process's ``value``, on every process."""
    box = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(box)
    return box[0]
