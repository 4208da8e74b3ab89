"""When the student no longer improves: the rule, and the early end of the learning rate.

Both are pure functions of what was measured, so that a resumed run decides the same.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

WINDOW = 3
"""Measurements whose mean is compared with the mean of as many before."""
MIN_GAIN = 0.02
"""Improvement from window to window, as a share of all improvement so far, below which the run
has reached a plateau. With 20 measurements in a run, two windows are three tenths of it."""
DECAY_SHARE = 0.1
"""Length of the early end, as a share of the steps that are done."""


def plateau(losses: Sequence[float]) -> bool:
    """Decide whether a falling loss has reached a plateau.

    The loss on fixed images in eval mode is smooth: on photographs it fell in 27 of 30 measurements
    (ResNet-18, 300 steps), while the loss of the training batches rose with the filling queue.

    Args:
        losses: Held-out loss of every measurement since the end of the warm-up, oldest first.

    Returns:
        True if, at the last two measurements, the mean of the last ``WINDOW`` losses was lower
        than that of the ``WINDOW`` before by less than ``MIN_GAIN`` of what the loss had fallen.
    """
    return all(_is_flat(part) for part in (losses, losses[:-1]))


def _is_flat(losses: Sequence[float]) -> bool:
    if len(losses) < 2 * WINDOW + 1:
        return False
    recent = statistics.fmean(losses[-WINDOW:])
    before = statistics.fmean(losses[-2 * WINDOW : -WINDOW])
    return before - recent < MIN_GAIN * max(0.0, losses[0] - before)


class EarlyEnd:
    """Length of a run that may end early: the learning rate then decays to 0 over a few steps.

    Args:
        planned_steps: Length of the run if it does not end early.
    """

    def __init__(self, planned_steps: int) -> None:
        self.planned_steps = planned_steps
        self.decay_from: int | None = None
        """First step of the decay; None if the run does not end early."""

    @property
    def total_steps(self) -> int:
        """Number of steps after which the run ends."""
        if self.decay_from is None:
            return self.planned_steps
        return self.decay_from + decay_steps(self.decay_from)

    def begin(self, done: int) -> bool:
        """Begin the decay after ``done`` steps, unless the run ends as early by itself."""
        if self.decay_from is None and done + decay_steps(done) < self.planned_steps:
            self.decay_from = done
            return True
        return False

    def scheduled_step(self, step: int) -> int:
        """Return the step of the schedule whose learning rate counts: the decay starts from it."""
        return step if self.decay_from is None else min(step, self.decay_from)

    def factor(self, step: int) -> float:
        """Return the factor on that learning rate: half a cosine from 1 to 0."""
        if self.decay_from is None or step < self.decay_from:
            return 1.0
        part = (step - self.decay_from) / decay_steps(self.decay_from)
        return 0.5 * (1 + math.cos(math.pi * part))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"planned_steps": self.planned_steps, "decay_from": self.decay_from}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state; an early end does not count for a run of another length."""
        if state["planned_steps"] == self.planned_steps:
            self.decay_from = state["decay_from"]


def decay_steps(done: int) -> int:
    """Return the number of steps of the decay after ``done`` steps."""
    return max(1, math.ceil(DECAY_SHARE * done))


def measure_interval(
    total_steps: int, global_batch_size: int, num_images: int, *, fewest: int = 4, most: int = 20
) -> int:
    """Return the number of steps between two measurements that take at most 2 % of the time.

    There are ``most`` in a run, fewer in a short one, at least ``fewest``. A measurement is a
    forward pass of the student for each held-out image. Training with an image is more than six of
    them: two views, each with a forward and a backward pass of twice its cost, and the teacher's.
    So an eighth as many held-out images as training images takes less than 1/48 of the time.
    """
    affordable = total_steps * global_batch_size // (8 * num_images)
    return math.ceil(total_steps / min(max(affordable, fewest), most))
