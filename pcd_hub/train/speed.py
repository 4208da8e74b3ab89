"""Precision, compilation and memory settings, which change results only by rounding."""

import ctypes
import dataclasses
import logging
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from pcd_hub.errors import ConfigError, first_line
from pcd_hub.train.configs.distill import SpeedConfig

log = logging.getLogger("pcd_hub")

MIN_STEPS_TO_COMPILE = 1000
"""In shorter runs compilation may take longer than it saves: 11 to 33 s per network."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # /proc/cpuinfo on x86 and on ARM


def mixed_precision(speed: SpeedConfig) -> str | None:
    """Return the Accelerator's ``mixed_precision``; None leaves it to the launcher.

    auto: the launcher's setting, or else bfloat16 if the hardware supports it.
    """
    match speed.precision:
        case "fp32":
            return "no"
        case "auto":
            launcher_sets_it = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
            return None if launcher_sets_it or not has_bfloat16_units() else "bf16"
        case precision:
            return precision


def check_precision(precision: str | None, *, on_cpu: bool) -> None:
    """Check that the device supports the precision.

    Args:
        precision: Result of :func:`mixed_precision`.
        on_cpu: True if there is no accelerator. CPUs have no fast float16, and some float16
            operators hang on them.

    Raises:
        ConfigError: If it is fp16 on a CPU, or the launcher's precision is unknown.
    """
    from_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    option = f"--speed.precision {precision}" if precision else f"--mixed_precision {from_launcher}"
    if (precision or from_launcher) not in {"no", "bf16", "fp16"}:
        raise ConfigError(f"{option}, from the launcher: expected one of no, bf16, fp16")
    if on_cpu and (precision or from_launcher) == "fp16":
        raise ConfigError(f"{option} needs a GPU; on a CPU use fp32 or bf16")


def has_bfloat16_units() -> bool:
    """Check for hardware support of bfloat16, without which CPUs emulate it slowly."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        cpu_info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return not _BFLOAT16_FLAGS.isdisjoint(cpu_info.split())


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, for this process and its children; return whether it does.

    By default, every freed tensor above 32 MiB is returned to the system, and the next one is
    mapped and zeroed page by page, which takes a tenth of the recipe's step on two cores.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def wants_compile(speed: SpeedConfig, device: torch.device, *, steps: int) -> bool:
    """Return the configured value, or by default True on GPUs if the run is long enough."""
    long_enough = device.type == "cuda" and steps >= MIN_STEPS_TO_COMPILE
    return long_enough if speed.compile is None else speed.compile


def resolve_speed(speed: SpeedConfig, accelerator: Accelerator, *, steps: int) -> SpeedConfig:
    """Resolve the defaults: set the Accelerator's precision and whether to compile."""
    mixed_precision = str(accelerator.mixed_precision)
    precision = "fp32" if mixed_precision == "no" else mixed_precision
    compiled = wants_compile(speed, accelerator.device, steps=steps)
    return dataclasses.replace(speed, precision=precision, compile=compiled)  # pyright: ignore[reportArgumentType]


def compiles_training(device: torch.device) -> bool:
    """Return True on GPUs; on CPUs, compiling networks with a backward pass gains nothing."""
    return device.type == "cuda"


def has_sync_batch_norm(name: str, network: nn.Module) -> bool:
    """Check for SyncBatchNorm, which prevents compilation, and log it.

    It communicates in the middle of the network, which would split ResNet-18 into 23 graphs.
    """
    found = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    if found:
        log.info("not compiled: %s, because SyncBatchNorm splits it into small graphs", name)
    return found


def compile_networks(
    parts: Mapping[str, nn.Module],
    one_pass: Callable[[], object],
    accelerator: Accelerator,
    **options: Any,
) -> bool:
    """Compile every network in place; if this fails on any process, all continue uncompiled.

    Args:
        parts: Networks by name.
        one_pass: Function that runs them with the shapes, gradients and autocast of a training
            step, without changing them or waiting for other processes.
        accelerator: The run's Accelerator.
        options: Arguments of ``torch.compile``.

    Returns:
        True if they are compiled; otherwise the reason is logged.
    """
    if not parts:
        return False
    reason = ""
    try:
        for part in parts.values():
            part.compile(**options)
        with warnings.catch_warnings():  # torch.compile reads the gradient of each input
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
            one_pass()
    except Exception as error:  # no compiler, an unsupported operator ...
        # torch.compile wraps the cause in its own exception.
        reason = first_line(getattr(error, "inner_exception", error)) or type(error).__name__
    if reason := next(filter(None, gather_object([reason])), ""):
        torch.compiler.set_stance("force_eager")
        log.warning("not compiled (%s): %s. The run continues uncompiled", ", ".join(parts), reason)
        return False
    log.info("compiled: %s", ", ".join(parts))
    return True


def run_once(network: nn.Module, *inputs: Tensor, accelerator: Accelerator) -> None:
    """Run forward, and backward if anything is trained, and restore the network's state."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    devices = [inputs[0].device] if inputs[0].device.type == "cuda" else []
    trained = any(parameter.requires_grad for parameter in network.parameters())
    with torch.random.fork_rng(devices), torch.set_grad_enabled(trained):
        with accelerator.autocast():
            output = network(*inputs)
        if trained:
            output.float().sum().backward()
    network.load_state_dict(before)
    network.zero_grad()
