"""Time, memory and tables for the benchmarks."""

import collections
import contextlib
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.profiler import record_function

from pcd_hub.train.speed import has_bfloat16_units

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


def matmul_rates() -> dict[str, float]:
    """Measure the FLOP/s of a large matrix product in every precision with hardware units."""
    rates = {"float32": matmul_rate(torch.float32)}
    if DEVICE.type == "cuda":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        rates["tf32"] = matmul_rate(torch.float32)
        torch.set_float32_matmul_precision(before)
    if has_bfloat16_units():
        rates["bfloat16"] = matmul_rate(torch.bfloat16)
    return rates


def fastest_precision(rates: dict[str, float], *, bf16: bool) -> str:
    """Return the precision that a step's products run in: a key of :func:`matmul_rates`.

    PyTorch computes float32 convolutions in TF32 where a GPU has it.
    """
    if bf16 and "bfloat16" in rates:
        return "bfloat16"
    return "tf32" if "tf32" in rates else "float32"


def compare_with_rate(
    row: dict[str, Any], flops: dict[str, float], precision: str, rate: float
) -> dict[str, Any]:
    """Compare a row's FLOP/s with the rate of a matrix product.

    Args:
        row: A summary of steps.
        flops: FLOP per image and stage.
        precision: Precision of the row's products.
        rate: FLOP/s of a large matrix product in that precision.
    """
    computing = sum(row["split"].values()) - row["split"]["data wait"]
    images = row["images_per_s"] * row["seconds"]  # of one step
    return {
        "precision": precision,
        "flop_per_s": sum(flops.values()) * row["images_per_s"],
        "share_of_matmul_rate": sum(flops.values()) * row["images_per_s"] / rate,
        "images_per_s_without_data_wait": images / computing,
        "share_of_matmul_rate_without_data_wait": sum(flops.values()) * images / computing / rate,
        "share_of_matmul_rate_by_stage": {
            stage: flops[stage] * images / row["split"][stage] / rate
            for stage in flops
            if row["split"][stage]
        },
    }


@contextlib.contextmanager
def stage_seconds() -> Iterator[dict[str, float]]:
    """Measure the wall time inside each ``record_function``, with the device idle at both ends.

    It yields the sums by name. A profiler would list a GPU's kernels of the backward pass under
    another thread than the stage that waits for them.
    """
    totals: dict[str, float] = collections.defaultdict(float)
    started: dict[int, float] = {}
    enter, leave = record_function.__enter__, record_function.__exit__

    def start(self: record_function) -> record_function:
        synchronize()
        started[id(self)] = time.perf_counter()
        return enter(self)

    def stop(self: record_function, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        synchronize()
        totals[self.name] += time.perf_counter() - started.pop(id(self))
        leave(self, exc_type, exc_value, traceback)

    record_function.__enter__, record_function.__exit__ = start, stop
    try:
        yield totals
    finally:
        record_function.__enter__, record_function.__exit__ = enter, leave


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
