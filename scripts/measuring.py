"""Time, memory and tables for the benchmarks."""

import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """Return the wall time of each of ``repeats`` calls, after one warm-up call."""
    times = []
    for _ in range(repeats + 1):
        synchronize()
        before = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - before)
    return times[1:]


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Measure the FLOP/s of a large matrix product, the best of ten."""
    size = 8192 if DEVICE.type == "cuda" else size
    left, right = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right, 10))


def synchronize() -> None:
    """Wait until the device is idle."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Return the peak memory so far, of the GPU or else of this process."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print()
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and half the interquartile range."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return statistics.median(values), (high - low) / 2
