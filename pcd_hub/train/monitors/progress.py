"""Progress bar and speed of a training run."""

import itertools
import time
from collections.abc import Iterator
from typing import TypeVar

from accelerate import Accelerator
from tqdm.auto import tqdm

from pcd_hub.evaluate.progress import bar_style

BatchT = TypeVar("BatchT")


class Progress:
    """Progress bar on the main process, and the speed since the last measurement.

    Args:
        accelerator: The run's Accelerator.
        global_batch_size: Images per step, over all processes.
        start: First step of this process.
        total_steps: Last step + 1.
        label: Label of the bar.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        global_batch_size: int,
        *,
        start: int,
        total_steps: int,
        label: str | None = None,
    ) -> None:
        self._bar = tqdm(
            desc=label,
            total=total_steps,
            initial=start,
            unit="step",
            disable=not accelerator.is_main_process,
            **{**bar_style(), "leave": True},
        )
        self._global_batch_size = global_batch_size
        self._step = start
        self._since = time.perf_counter()
        self._waited = 0.0

    def wait_for(self, batches: Iterator[BatchT], count: int) -> list[BatchT]:
        """Return the next ``count`` batches; the time this takes counts as data wait."""
        before = time.perf_counter()
        taken = list(itertools.islice(batches, count))
        self._waited += time.perf_counter() - before
        return taken

    def measure(self, step: int, loss: float, lr: float) -> dict[str, float]:
        """Return images/s (each in two views) and the share of data wait since the last call."""
        now = time.perf_counter()
        seconds, steps = now - self._since, step + 1 - self._step
        speed = steps * self._global_batch_size / seconds
        metrics = {"images_per_s": round(speed, 2), "data_wait": round(self._waited / seconds, 4)}
        shown = f"loss {loss:.3f}, {speed:.1f} images/s, data {self._waited / seconds:.0%}"
        self._bar.set_postfix_str(f"{shown}, lr {lr:.1e}", refresh=False)
        self._bar.update(steps)
        self._since, self._step, self._waited = now, step + 1, 0.0
        return metrics

    def set_length(self, total_steps: int) -> None:
        """Set the last step + 1, which may come earlier than at the start of the run."""
        self._bar.total = total_steps

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()
