"""Schedules as pure functions of the step, so a resumed run needs no scheduler state."""

import math


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the factor in (0, 1] on the peak learning rate: linear warm-up, then half a cosine.

    No step has a factor of 0: warm-up reaches 1 at ``step == warmup_steps``, and the cosine would
    reach 0 at ``step == total_steps``, one past the last step.

    Raises:
        ValueError: If ``step`` is not in ``[0, total_steps)`` or ``warmup_steps`` is not less than
            ``total_steps``.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step={step}: expected 0 to {total_steps - 1}")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps}: expected at least 0 and less than "
            f"total_steps={total_steps}"
        )
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def scaled_lr(base_lr: float, *, global_batch_size: int, reference: int = 256) -> float:
    """Apply the linear scaling rule: ``base_lr * global_batch_size / reference``.

    The global batch is that of all processes together.
    """
    return base_lr * global_batch_size / reference


def momentum_to_one(step: int, *, start: float, total_steps: int) -> float:
    """Return the encoder momentum, which rises from ``start`` to 1 as half a cosine (BYOL)."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / total_steps))
