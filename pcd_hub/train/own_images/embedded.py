"""Run inside another program: a notebook or script with its own logging, seeds and Accelerator."""

import contextlib
import gc
import logging
from collections.abc import Iterator

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from pcd_hub.evaluate.progress import LogHandler

log = logging.getLogger("pcd_hub")


@contextlib.contextmanager
def embedded() -> Iterator[None]:
    """Run the block with a new Accelerator; restore afterwards what a run changes in the process.

    These are Accelerate's state, torch's random state, number of threads and cuDNN setting, and the
    loggers.
    """
    gc.collect()  # an earlier run in the same folder must have released it
    devices = range(torch.cuda.device_count())
    with _messages(), _new_accelerator(), _torch_settings(), torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def _messages() -> Iterator[None]:
    """Print this package's messages as plain lines, unless the program has set up logging."""
    level, propagate = log.level, log.propagate
    handler = None
    if not log.hasHandlers():
        handler = LogHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    if not logging.getLogger().handlers:
        log.propagate = False  # otherwise the run sets up the root logger
    if level == logging.NOTSET:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.propagate = propagate
        if handler is not None:
            log.removeHandler(handler)


@contextlib.contextmanager
def _new_accelerator() -> Iterator[None]:
    """Let the block start an Accelerator with settings of its own.

    Accelerate shares one state between all Accelerators of a process, and rejects a second one with
    another precision.
    """
    shared = [kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)


@contextlib.contextmanager
def _torch_settings() -> Iterator[None]:
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.compiler.set_stance("default")  # a failed compilation changes it
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
