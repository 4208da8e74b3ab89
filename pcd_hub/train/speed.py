"""What makes a run faster and changes its numbers by rounding alone."""

import ctypes
import dataclasses
import logging
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from pcd_hub.errors import ConfigError, first_line
from pcd_hub.train.configs.distill import SpeedConfig

log = logging.getLogger("pcd_hub")

FEWEST_STEPS = 1000
"""Below, compiling may take longer than it saves: 11 to 33 s a network."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # /proc/cpuinfo on x86 and on ARM


class Compilable(Protocol):
    """As ``nn.Module.compile`` does, in place: names of weights stay."""

    def compile(self, *args: Any, **kwargs: Any) -> None: ...


def mixed_precision(speed: SpeedConfig) -> str | None:
    """The Accelerator's ``mixed_precision``; None leaves it to the launcher.

    auto: what the launcher was told, else bfloat16 where the device multiplies it itself.
    """
    match speed.precision:
        case "fp32":
            return "no"
        case "auto":
            told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
            return None if told or not multiplies_bfloat16() else "bf16"
        case asked:
            return asked


def check_precision(precision: str | None, *, on_cpu: bool) -> None:
    """Check the precision before anything runs in it.

    Args:
        precision: As :func:`mixed_precision` returns it.
        on_cpu: Whether there is no accelerator; CPUs have no fast float16, and some of its
            operators never end there.

    Raises:
        ConfigError: If it is fp16 on a CPU, or the launcher names one that the recipes do not know.
    """
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    named = f"--speed.precision {precision}" if precision else f"--mixed_precision {told}"
    if (precision or told) not in {"no", "bf16", "fp16"}:
        raise ConfigError(f"{named}, from the launcher: expected one of no, bf16, fp16")
    if on_cpu and (precision or told) == "fp16":
        raise ConfigError(f"{named} needs a GPU; on a CPU use fp32 or bf16")


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 pays on this device; processors without units for it emulate it slowly."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return not _BFLOAT16_FLAGS.isdisjoint(described.split())


def keep_freed_memory() -> bool:
    """Let glibc keep what it frees, for this process and its children; whether it could.

    By default it hands every tensor above 32 MiB back to the system, and the next of that size is
    mapped, and zeroed page by page, again: on two cores a tenth of the recipe's step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def wants_compile(speed: SpeedConfig, device: torch.device, *, steps: int) -> bool:
    """As asked for, else on GPUs where a run is long enough; on CPUs it saves nothing."""
    long_enough = device.type == "cuda" and steps >= FEWEST_STEPS
    return long_enough if speed.compile is None else speed.compile


def resolve_speed(speed: SpeedConfig, accelerator: Accelerator, *, steps: int) -> SpeedConfig:
    """Return the settings in use: the Accelerator's precision, and whether to compile."""
    mixed_precision = str(accelerator.mixed_precision)
    precision = "fp32" if mixed_precision == "no" else mixed_precision
    compiled = wants_compile(speed, accelerator.device, steps=steps)
    return dataclasses.replace(speed, precision=precision, compile=compiled)  # pyright: ignore[reportArgumentType]


def compiles_training(device: torch.device) -> bool:
    """Whether networks with a backward pass are worth it: on CPUs they did not get faster."""
    return device.type == "cuda"


def has_sync_batch_norm(name: str, network: nn.Module) -> bool:
    """Whether ``network`` is to be left uncompiled, which is logged.

    SyncBatchNorm talks to the other processes in the middle of a network: ResNet-18 falls apart
    into 23 graphs.
    """
    found = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    if found:
        log.info("not compiled: %s, as SyncBatchNorm would cut it into small graphs", name)
    return found


def compile_or_say_why_not(
    parts: Mapping[str, Compilable], one_pass: Callable[[], object], accelerator: Accelerator
) -> bool:
    """Compile every part in place; if that fails on any process, all go on uncompiled.

    Args:
        parts: What to compile, by the name the log gives it.
        one_pass: Runs them as a training step does, with its shapes, gradients and autocast, and
            leaves nothing changed. It may not wait for other processes.
        accelerator: Of the run.
    """
    if not parts:
        return False
    why = ""
    try:
        for part in parts.values():
            part.compile()
        with warnings.catch_warnings():  # torch.compile asks each network's input for its gradient
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
            one_pass()
    except Exception as error:  # no compiler, an operator it does not know ...
        # torch.compile wraps the cause in an error of its own.
        why = first_line(getattr(error, "inner_exception", error)) or type(error).__name__
    if why := next(filter(None, gather_object([why])), ""):
        torch.compiler.set_stance("force_eager")
        log.warning("not compiled (%s): %s. The run goes on without", ", ".join(parts), why)
        return False
    log.info("compiled: %s", ", ".join(parts))
    return True


def pass_through(network: nn.Module, *inputs: Tensor, accelerator: Accelerator) -> None:
    """One pass as in a training step, backward too if anything is trained; nothing is changed."""
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
