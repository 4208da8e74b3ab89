"""Schedules: pure functions of the step, so that a resumed run needs no scheduler state."""

import math


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """The factor in (0, 1] on the peak learning rate at ``step`` (0-based).

    Linear warm-up, then half a cosine.

    The first step is never at 0 and the last never at exactly 0: warm-up reaches 1 at
    ``step == warmup_steps``, the cosine would reach 0 at ``step == total_steps``, one past the
    last.

    Raises:
        ValueError: If ``step`` is not in ``[0, total_steps)`` or the warm-up is not shorter than
            the whole.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside 0..{total_steps - 1}")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be at least 0 "
            f"and less than total_steps={total_steps}"
        )
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def scaled_lr(base_lr: float, *, global_batch_size: int, reference: int = 256) -> float:
    """``base_lr * global_batch_size / reference``: the linear scaling rule.

    The batch is that of ALL processes together.
    """
    return base_lr * global_batch_size / reference


def momentum_to_one(step: int, *, start: float, total_steps: int) -> float:
    """A momentum encoder's momentum, from ``start`` to 1 along half a cosine (BYOL, MoCo v3)."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / total_steps))
