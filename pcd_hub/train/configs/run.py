"""Settings of a run that every training recipe shares."""

from dataclasses import dataclass
from pathlib import Path

from pcd_hub.train.configs.fields import Count, Seed


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
