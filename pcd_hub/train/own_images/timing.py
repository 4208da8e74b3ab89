"""Measure the duration of a training step."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pcd_hub.data.loader import Batch
from pcd_hub.errors import ConfigError
from pcd_hub.train.launch import from_main_process

WARM_UP_STEPS = 2
MIN_STEPS, MAX_STEPS, SECONDS = 3, 30, 8.0
"""Measured steps: fewest, most, and seconds to measure between them."""


def steps_to_measure(num_workers: int) -> int:
    """Return the number of steps whose batches :func:`measure_step` may take."""
    return 3 * max(1, num_workers) + WARM_UP_STEPS + MAX_STEPS


def measure_step(
    step: Callable[[list[Batch]], object],
    batches: Iterator[Batch],
    *,
    accumulation_steps: int,
    num_workers: int,
    accelerator: Accelerator,
) -> float:
    """Return the seconds that a step takes, on the slowest process; call it on every process.

    The time of the loader alone counts if it is longer: batches that it prepared ahead hide that
    in the first steps.

    Args:
        step: The training step.
        batches: This process's batches, of :func:`steps_to_measure` steps or more.
        accumulation_steps: Batches of a step.
        num_workers: Loader processes.
        accelerator: The run's Accelerator.

    Raises:
        ConfigError: If the step does not fit into the GPU's memory.
        DataError: If the images cannot be read.
    """
    loading = _loading_seconds(batches, max(1, num_workers)) * accumulation_steps

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step(list(itertools.islice(batches, accumulation_steps)))
        if accelerator.device.type != "cpu":
            torch.accelerator.synchronize(accelerator.device)
        return (time.perf_counter() - started) / count

    try:
        run(WARM_UP_STEPS - 1)
        count = max(MIN_STEPS, min(MAX_STEPS, int(SECONDS / run(1))))
        seconds = run(cast("int", from_main_process(accelerator, count)))
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "a step needs more memory than the GPU has; lower --optim.global-batch-size or "
            "--data.image-size, or use a smaller teacher"
        ) from error
    return max(gather_object([max(seconds, loading)]))


def _loading_seconds(batches: Iterator[Batch], num_workers: int) -> float:
    """Return the seconds per batch of the loader alone, once all its processes work."""
    for _ in range(num_workers):
        next(batches)
    started = time.perf_counter()
    for _ in range(2 * num_workers):
        next(batches)
    return (time.perf_counter() - started) / (2 * num_workers)
