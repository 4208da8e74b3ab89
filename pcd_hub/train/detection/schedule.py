"""Learning rate schedule: linear warm-up, division by 10 at drops, scaled to the batch size."""

from dataclasses import dataclass

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.detection import DetectionOptimConfig
from pcd_hub.train.configs.finetune import scaled


@dataclass(frozen=True, kw_only=True)
class DetectionSchedule:
    """A schedule in optimizer steps."""

    peak_lr: float
    steps: int
    drops: tuple[int, ...]
    warmup_steps: int
    warmup_factor: float

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 0."""
        lr = self.peak_lr * 0.1 ** sum(step >= drop for drop in self.drops)
        if step >= self.warmup_steps:
            return lr
        share = step / self.warmup_steps
        return lr * (self.warmup_factor * (1 - share) + share)


def scaled_schedule(
    config: DetectionOptimConfig, *, max_steps: int | None = None
) -> DetectionSchedule:
    """Scale a schedule to the global batch size.

    Args:
        config: The schedule for its ``reference_batch_size``.
        max_steps: If given, the schedule is compressed into this number of steps.

    Raises:
        ConfigError: If a drop is not before the end.
    """
    peak_lr, steps = scaled(config, max_steps=max_steps)
    if any(drop >= config.iterations for drop in config.lr_drops):
        raise ConfigError(
            f"--optim.lr-drops {max(config.lr_drops)}: expected less than "
            f"--optim.iterations {config.iterations}; set both, or set --run.max-steps, which "
            "compresses the whole schedule"
        )
    squeeze = steps / config.iterations
    return DetectionSchedule(
        peak_lr=peak_lr,
        steps=steps,
        drops=tuple(round(drop * squeeze) for drop in config.lr_drops),
        warmup_steps=round(config.warmup_iterations * squeeze),
        warmup_factor=config.warmup_factor,
    )
