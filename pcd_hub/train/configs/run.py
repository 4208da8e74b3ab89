"""Settings of a run that every training recipe shares."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from pcd_hub.train.configs.fields import Count, Seed

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Output folder, length, seed and logging. Only seed and max-steps change the result."""

    output_dir: Path | None = None
    """Folder of the run. None: runs/CONFIG, with a number appended if that exists."""
    max_steps: Count | None = None
    """Number of steps to train, to which the learning-rate schedule is
    fitted. None: set by the epochs or iterations."""
    seed: Seed = 0
    """Seed of the initial weights, of the order of the images and of their augmentation."""
    resume: bool = False
    """Continue from the last checkpoint in output-dir. Only length, speed,
    logging, held-out scores and the weight's name may differ from the
    settings that the run was started with."""
    accept_changed_data: bool = False
    """With --run.resume: continue even if the images or the teacher have
    changed since. The change is recorded."""
    log_every_steps: Count = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every_steps: Count = 500
    """Steps between two checkpoints."""
    keep_checkpoints: Count = 2
    """Number of checkpoints to keep; older ones are deleted."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers to log to, by their names in Accelerate:
    tensorboard, wandb, mlflow, trackio ... metrics.jsonl is always
    written."""
    project: str = "pcd_hub"
    """Name of the project in the trackers."""
    run_name: str | None = None
    """Name of the run in the trackers. None: the name of its folder."""


def resolve_run(config: ConfigT, *, total_steps: int, num_workers: int) -> ConfigT:
    """Return a recipe's configuration with the actual number of steps and loader processes.

    Args:
        config: A configuration with the groups ``data`` and ``run``.
        total_steps: Optimizer steps of the whole run.
        num_workers: Loader processes per training process.
    """
    groups = cast("Any", config)
    data = replace(groups.data, num_workers=num_workers)
    return replace(groups, data=data, run=replace(groups.run, max_steps=total_steps))
