"""Stopwatch, memory and tables of the benchmarks."""

import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of each of ``repeats`` calls, after one to warm up."""
    taken = []
    for _ in range(repeats + 1):
        synchronize()
        before = time.perf_counter()
        function()
        synchronize()
        taken.append(time.perf_counter() - before)
    return taken[1:]


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a large matrix product, the best of ten: what this device can reach."""
    size = 8192 if DEVICE.type == "cuda" else size
    left, right = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right, 10))


def synchronize() -> None:
    """Wait for the device; CPUs are always done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Most memory so far: of the device, or of this process."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return process_peak_bytes()


def process_peak_bytes() -> int:
    """Most memory of this process so far, whatever the device."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Markdown, as it stands in recipes/README.md."""
    print()
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Median, and half the distance between the quartiles."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return statistics.median(values), (high - low) / 2
