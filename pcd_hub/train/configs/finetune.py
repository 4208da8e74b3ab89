"""What the configurations of the recipes that train a whole backbone on labels share."""

from dataclasses import dataclass
from pathlib import Path

from pcd_hub.train.configs.fields import Count, NotNegative, Positive, Seed, Share


@dataclass(frozen=True, kw_only=True)
class SGDScheduleConfig:
    """Steps and learning rate of SGD, stated for ``reference_batch_size``."""

    reference_batch_size: Count = 16
    """Images a step for which the fields below are stated."""
    global_batch_size: Count = 16
    """Images a step, over all processes."""
    lr: Positive
    iterations: Count
    momentum: Share = 0.9
    weight_decay: NotNegative = 1e-4
    """On everything but norms."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRunConfig:
    """Where and how long. Except for seed and max_steps, nothing here changes the result."""

    output_dir: Path | None = None
    """Default: runs/CONFIG, numbered if taken."""
    max_steps: Count | None = None
    """Squeeze the whole schedule into so many steps."""
    seed: Seed = 0
    resume: bool = False
    """Go on from the last checkpoint in output_dir; resuming.py lists what may change."""
    accept_changed_data: bool = False
    """With resume: although the images are not those the run began with. It is recorded."""
    log_every_steps: Count = 20
    checkpoint_every_steps: Count = 2000
    keep_checkpoints: Count = 2
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
    """
    larger = config.global_batch_size / config.reference_batch_size
    steps = max(1, round(config.iterations / larger)) if max_steps is None else max_steps
    return config.lr * larger, steps
