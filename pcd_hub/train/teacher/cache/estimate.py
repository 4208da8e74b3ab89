"""The size of a cache, the speed of its disk, and whether it pays, before the first step.

In the first ``view_epochs`` epochs the teacher sees every view and the records are written; from
then on a step costs what the student costs.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

MIN_SAVING = 0.05
"""Least share of the run's time that a cache must save to be made by itself."""
MIN_EPOCHS = 2
"""Fewest passes over the images with a cache that is made by itself."""
REPEATS, MAX_VIEW_EPOCHS = 4, 4
"""How often a view is used, and most pairs of views of an image, unless more are asked for."""
FREE_SHARE = 0.8
"""Largest share of the free space of the disk for a cache."""
_MEASURED_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """The size of a cache, and the room for it."""

    num_images: int
    record_bytes: int
    limit_bytes: float
    """Largest size that the user allows."""
    free_bytes: float
    """Free space of the disk."""
    existing_bytes: float = 0.0
    """Bytes of the records that exist already."""

    def num_bytes(self, view_epochs: int) -> int:
        """Return the size with ``view_epochs`` pairs of views of each image."""
        return self.num_images * view_epochs * (self.record_bytes + 4)

    def missing_bytes(self, view_epochs: int) -> float:
        """Return the bytes that are still to be written."""
        return max(0.0, self.num_bytes(view_epochs) - self.existing_bytes)

    @property
    def room(self) -> float:
        """Bytes that a cache may have."""
        return min(self.limit_bytes, FREE_SHARE * self.free_bytes + self.existing_bytes)

    @property
    def most_view_epochs(self) -> int:
        """Most pairs of views of each image for which there is room."""
        return int(self.room // self.num_bytes(1))

    def describe(self, view_epochs: int) -> str:
        """Return the size in one line."""
        return (
            f"{self.num_images:,} images x {view_epochs} pairs of views x "
            f"{self.record_bytes / 1e3:.1f} KB = {as_gb(self.num_bytes(view_epochs))}, "
            f"{as_gb(self.free_bytes)} free"
        )

    def too_large(self, view_epochs: int) -> str:
        """Return why there is no room; an empty text if there is."""
        needed = self.num_bytes(view_epochs)
        if needed > self.limit_bytes:
            return f"needs {as_gb(needed)}, --teacher.cache-gb is {self.limit_bytes / 1e9:g}"
        if needed > self.room:
            return (
                f"needs {as_gb(self.missing_bytes(view_epochs))} more, {as_gb(self.free_bytes)} "
                f"are free, of which it may take {FREE_SHARE:.0%}"
            )
        return ""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Measured durations of a training step, in seconds."""

    teacher: float
    """With the teacher."""
    cached: float
    """Without it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Whether there is a cache, and why."""

    view_epochs: int
    """Pairs of views of each image; 0 for no cache."""
    reason: str


def choose(
    size: CacheSize,
    times: StepTimes,
    *,
    epochs: float,
    writing_seconds: float,
    requested: int = 0,
) -> Choice:
    """Decide whether a cache pays, and for how many pairs of views of each image.

    Args:
        size: Size and room.
        times: Durations of a step.
        epochs: Passes over the images in the whole run, for each size of the views.
        writing_seconds: Seconds to write the records of a step.
        requested: Pairs of views that the user asks for; 0 for as many as are useful.
    """
    if epochs < MIN_EPOCHS:
        return Choice(view_epochs=0, reason=f"{epochs:.1f} passes over the images are too few")
    if too_large := size.too_large(requested or 1):
        return Choice(view_epochs=0, reason=too_large)
    view_epochs = requested or min(useful_view_epochs(epochs), size.most_view_epochs)
    saved = saving(times, view_epochs, epochs=epochs, writing_seconds=writing_seconds)
    if saved < MIN_SAVING:
        teacher = 1 - times.cached / times.teacher
        return Choice(
            view_epochs=0,
            reason=f"it would save {max(0, saved):.0%} of the time: the teacher takes "
            f"{max(0, teacher):.0%} of a step, writing a record {writing_seconds:.2g} s",
        )
    return Choice(
        view_epochs=view_epochs,
        reason=f"saves {saved:.0%} of the time, {as_gb(size.num_bytes(view_epochs))}",
    )


def useful_view_epochs(epochs: float) -> int:
    """Return the pairs of views of each image for a run of ``epochs`` passes, at least 1."""
    return max(1, min(MAX_VIEW_EPOCHS, int(epochs / REPEATS)))


def saving(
    times: StepTimes, view_epochs: int, *, epochs: float, writing_seconds: float = 0.0
) -> float:
    """Return the share of a run's time that a cache saves; negative if it costs time."""
    first = min(1.0, view_epochs / epochs) if epochs else 1.0
    with_cache = first * (times.teacher + writing_seconds) + (1 - first) * times.cached
    return 1 - with_cache / times.teacher


def average_step(times: StepTimes, *, filling_steps: float, seconds: float) -> float:
    """Return the average duration of a step of a run that fills its cache first.

    Args:
        times: Durations of a step.
        filling_steps: Steps until the cache is full.
        seconds: Seconds for all steps.
    """
    filling = filling_steps * times.teacher
    if seconds <= filling:
        return times.teacher
    return seconds / (filling_steps + (seconds - filling) / times.cached)


def write_speed(place: Path) -> float:
    """Measure the bytes per second that a folder takes, up to the disk itself.

    Raises:
        OSError: If it cannot be written.
    """
    place.mkdir(parents=True, exist_ok=True)
    path = place / f".speed-{os.getpid()}"
    block = os.urandom(2**20)  # compressing file systems would write zeros faster
    try:
        with path.open("wb", buffering=0) as file:
            started = time.perf_counter()
            for _ in range(_MEASURED_BYTES // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            return _MEASURED_BYTES / max(time.perf_counter() - started, 1e-9)
    finally:
        path.unlink(missing_ok=True)


def as_gb(num_bytes: float) -> str:
    """Return a number of bytes as text: 1.23 GB, or 45 MB."""
    if not math.isfinite(num_bytes):
        return "unknown"
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
