"""Accelerate's trackers: which there are, and what a run tells them beside its metrics."""

import importlib.util
import json
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import broadcast_object_list
from PIL import Image

from pcd_hub.errors import ConfigError, first_line, nearest

log = logging.getLogger("pcd_hub")

_RUN_NAME = {
    "wandb": "name",
    "trackio": "name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
}
"""How a tracker takes the name of a run; the others are told the project alone."""
_BATCHES = ("tensorboard", "wandb", "swanlab")
"""They take several images under one name."""


def check_trackers(trackers: Iterable[str]) -> None:
    """Check that Accelerate knows them and that they are installed.

    Raises:
        ConfigError: If not.
    """
    for tracker in trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(
                f"--run.trackers {tracker}: Accelerate has no such tracker"
                f"{nearest(tracker, LOGGER_TYPE_TO_CLASS)}; "
                f"there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"--run.trackers {tracker}: not installed; pip install {tracker}")


def start_trackers(
    accelerator: Accelerator,
    trackers: Iterable[str],
    *,
    project: str,
    run_name: str,
    folder: Path,
    config: Mapping[str, Any],
) -> None:
    """Start the trackers and tell them the hyper-parameters; called by every process.

    Args:
        accelerator: Made with these trackers.
        trackers: Their names.
        project: Under which the run is filed.
        run_name: Where the tracker takes one.
        folder: Of the run, for trackers that write files.
        config: The resolved configuration, in plain containers.

    Raises:
        ConfigError: On every process, if a tracker refuses.
    """
    accelerator.project_configuration.logging_dir = str(folder)
    arguments = {name: {_RUN_NAME[name]: run_name} for name in trackers if name in _RUN_NAME}
    arguments.setdefault("wandb", {})["dir"] = str(folder)
    arguments["dvclive"] = {"dir": str(folder / "dvclive")}
    refusal = [""]
    try:
        accelerator.init_trackers(project, config=flat(config), init_kwargs=arguments)
    except Exception as error:  # of whichever tracker
        refusal[0] = (
            f"--run.trackers {' '.join(trackers)}: cannot start "
            f"({type(error).__name__}: {first_line(error)}); log in to it, use its offline mode "
            "(WANDB_MODE=offline), or leave it out"
        )
    if accelerator.num_processes > 1:
        broadcast_object_list(refusal)
    if refusal[0]:
        raise ConfigError(refusal[0])


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """``{"optim": {"lr": 1.0}}`` as ``{"optim.lr": 1.0}``, with values that every tracker takes."""
    found: dict[str, int | float | str | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, int | float | str)
            found[f"{prefix}{key}"] = value if plain else json.dumps(value)
    return found


_FAILED: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""The trackers of which that has been said."""


def tell(accelerator: Accelerator, what: Callable[[Any], None]) -> None:
    """Call ``what`` with every tracker; called by the main process.

    An error of one is a warning, the first time: it must not end a run, whose folder has it all.
    """
    for tracker in accelerator.trackers:
        try:
            what(tracker)
        except Exception as error:  # of whichever tracker
            if tracker in _FAILED:
                continue
            _FAILED.add(tracker)
            log.warning(
                "the tracker %s failed (%s: %s); the run goes on, and its folder holds everything",
                tracker.name,
                type(error).__name__,
                first_line(error),
            )


def log_pictures(accelerator: Accelerator, pictures: Iterable[Path], *, step: int) -> None:
    """Give PNG files to the trackers that take pictures; called by the main process."""
    for path in pictures:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        tell(accelerator, partial(_log_picture, path=path, pixels=pixels, step=step))


def _log_picture(tracker: Any, path: Path, pixels: np.ndarray, step: int) -> None:
    if hasattr(tracker, "log_images"):
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        shown = pixels[None] if tracker.name in _BATCHES else pixels
        tracker.log_images({path.stem: shown}, step=step, **options)
    elif hasattr(tracker, "log_artifact"):
        tracker.log_artifact(str(path))
    else:
        log.info("%s takes no pictures; %s stays in the run's folder", tracker.name, path.name)
