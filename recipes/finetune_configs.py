"""What the configurations of the recipes that train a whole backbone on labels share."""

from dataclasses import dataclass
from pathlib import Path

from pcd_hub.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SGDScheduleConfig:
    """Steps and learning rate of SGD, stated for ``reference_batch_size``."""

    reference_batch_size: int = 16
    """Images a step for which the fields below are stated."""
    global_batch_size: int = 16
    """Images a step, over all processes."""
    lr: float
    iterations: int
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """On everything but norms."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRunConfig:
    """Where and how long. Except for seed and max_steps, nothing here changes the result."""

    output_dir: Path | None = None
    """Default: runs/CONFIG, numbered if taken."""
    max_steps: int | None = None
    """Squeeze the whole schedule into so many steps."""
    seed: int = 0
    resume: bool = False
    """Go on from the last checkpoint in output_dir."""
    log_every_steps: int = 20
    checkpoint_every_steps: int = 2000
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()
    """Beside metrics.jsonl, those of Accelerate: tensorboard, wandb, mlflow, trackio ..."""
    project: str = "pcd_hub"
    """Under which the trackers file the run."""
    run_name: str | None = None
    """Of the run in the trackers. Default: the name of its folder."""


def scaled(config: SGDScheduleConfig, *, max_steps: int | None) -> tuple[float, int]:
    """Learning rate and number of steps for the batch that is used.

    Args:
        config: Stated for its ``reference_batch_size``.
        max_steps: If given, the schedule is squeezed into so many steps.

    Raises:
        ConfigError: If there is no step or no image.
    """
    if config.global_batch_size < 1 or config.reference_batch_size < 1 or config.iterations < 1:
        raise ConfigError(
            f"--schedule.iterations {config.iterations} of {config.global_batch_size} images "
            f"(stated for {config.reference_batch_size}) are no schedule; each must be at least 1"
        )
    larger = config.global_batch_size / config.reference_batch_size
    steps = max(1, round(config.iterations / larger)) if max_steps is None else max_steps
    if steps < 1:
        raise ConfigError(f"--run.max-steps {steps} are no steps; it must be at least 1")
    return config.lr * larger, steps
