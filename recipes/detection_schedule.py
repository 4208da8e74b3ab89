"""Learning rate by step: linear warm-up, then a tenth after every drop; scaled to the batch."""

from dataclasses import dataclass

from detect_configs import ScheduleConfig
from pcd_hub.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DetectionSchedule:
    """A schedule in optimizer steps of this run."""

    peak_lr: float
    steps: int
    drops: tuple[int, ...]
    warmup_steps: int
    warmup_factor: float

    def learning_rate(self, step: int) -> float:
        """Of ``step``, counted from 0."""
        lr = self.peak_lr * 0.1 ** sum(step >= drop for drop in self.drops)
        if step >= self.warmup_steps:
            return lr
        share = step / self.warmup_steps
        return lr * (self.warmup_factor * (1 - share) + share)


def scaled_schedule(config: ScheduleConfig, *, max_steps: int | None = None) -> DetectionSchedule:
    """The schedule for the batch that is used.

    Args:
        config: Stated for its ``reference_batch_size``.
        max_steps: If given, the schedule is squeezed into so many steps.

    Raises:
        ConfigError: If there is no step or no image, or a drop lies behind the end.
    """
    if config.global_batch_size < 1 or config.reference_batch_size < 1 or config.iterations < 1:
        raise ConfigError(
            f"--schedule.iterations {config.iterations} of {config.global_batch_size} images "
            f"(stated for {config.reference_batch_size}) are no schedule; each must be at least 1"
        )
    if any(drop >= config.iterations for drop in config.lr_drops):
        raise ConfigError(
            f"--schedule.lr-drops {max(config.lr_drops)} is not below "
            f"--schedule.iterations {config.iterations}; give both, or --run.max-steps, "
            "which squeezes the whole schedule"
        )
    larger = config.global_batch_size / config.reference_batch_size
    steps = max(1, round(config.iterations / larger)) if max_steps is None else max_steps
    if steps < 1:
        raise ConfigError(f"--run.max-steps {steps} are no steps; it must be at least 1")
    squeeze = steps / config.iterations
    return DetectionSchedule(
        peak_lr=config.lr * larger,
        steps=steps,
        drops=tuple(round(drop * squeeze) for drop in config.lr_drops),
        warmup_steps=round(config.warmup_iterations * squeeze),
        warmup_factor=config.warmup_factor,
    )
