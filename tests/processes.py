"""Several processes of one test, as a launcher would start them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

_IMPORTED = ["pytest", "pcd_hub.train.distill", "pcd_hub.train.contrast", "tests.train.conftest"]
"""Modules that every process needs. One process imports them, and is forked for each other one:
new interpreters, as ``torch.multiprocessing.spawn`` starts them, take seconds each."""


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody uses."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def start_processes(
    function: Callable[..., object], arguments: tuple[Any, ...], *, count: int = 2
) -> None:
    """Call ``function(rank, *arguments)`` in ``count`` processes, and raise what fails in one.

    Each has the environment that a launcher gives it, but for MASTER_PORT. They know nothing of
    what this process has changed in its modules.
    """
    multiprocessing.set_forkserver_preload(_IMPORTED)
    launch = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    here = ({**os.environ, **launch}, Path.cwd())
    mp.start_processes(_call, (function, here, arguments), count, start_method="forkserver")


def _call(
    rank: int,
    function: Callable[..., object],
    here: tuple[dict[str, str], Path],
    arguments: tuple[Any, ...],
) -> None:
    environ, folder = here  # not those of the process that is forked
    os.environ.clear()
    os.environ.update(environ, RANK=str(rank), LOCAL_RANK=str(rank))
    os.chdir(folder)
    function(rank, *arguments)
