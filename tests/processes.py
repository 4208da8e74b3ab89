"""Several processes of one test, as a launcher would start them."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

_IMPORTED = ["pytest", "pcd_hub.train.distill", "pcd_hub.train.contrast", "tests.train.conftest"]
"""Modules that every process needs. One process imports them, and is forked for each other one:
new interpreters, as ``torch.multiprocessing.spawn`` starts them, take seconds each."""


def start_processes(
    function: Callable[..., object], arguments: tuple[Any, ...], *, count: int = 2
) -> None:
    """Call ``function(rank, *arguments)`` in ``count`` processes, and raise what fails in one.

    They know nothing of what this process has changed in its modules.
    """
    multiprocessing.set_forkserver_preload(_IMPORTED)
    here = (dict(os.environ), Path.cwd())
    mp.start_processes(_call, (function, here, arguments), count, start_method="forkserver")


def _call(
    rank: int,
    function: Callable[..., object],
    here: tuple[dict[str, str], Path],
    arguments: tuple[Any, ...],
) -> None:
    environ, folder = here  # not those of the process that is forked
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    function(rank, *arguments)
