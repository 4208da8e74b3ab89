"""Accelerate's trackers: start them, and log metrics and pictures to them."""

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
from pcd_hub.train.configs.flat import flat

log = logging.getLogger("pcd_hub")

_RUN_NAME = {
    "wandb": "name",
    "trackio": "name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
}
"""Each tracker's argument for the name of the run; other trackers take only the project."""
_BATCHES = ("tensorboard", "wandb", "swanlab")
"""Trackers that take several images under one name."""


def check_trackers(trackers: Iterable[str]) -> None:
    """Check that Accelerate supports the trackers and that they are installed.

    Raises:
        ConfigError: If one is unsupported or not installed.
    """
    for tracker in trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(
                f"--run.trackers {tracker}: Accelerate has no such tracker"
                f"{nearest(tracker, LOGGER_TYPE_TO_CLASS)}; "
                f"expected one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
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
    """Start the trackers and log the hyper-parameters; call it on every process.

    Args:
        accelerator: Accelerator that was created with these trackers.
        trackers: Names of the trackers.
        project: Project of the run.
        run_name: Name of the run, for trackers that take one.
        folder: Folder of the run, for trackers that write files.
        config: Resolved configuration in plain containers.

    Raises:
        ConfigError: On every process, if a tracker fails to start.
    """
    accelerator.project_configuration.logging_dir = str(folder)
    arguments = {name: {_RUN_NAME[name]: run_name} for name in trackers if name in _RUN_NAME}
    arguments.setdefault("wandb", {})["dir"] = str(folder)
    arguments["dvclive"] = {"dir": str(folder / "dvclive")}
    failure = [""]
    try:
        accelerator.init_trackers(project, config=_accepted(config), init_kwargs=arguments)
    except Exception as error:  # trackers raise various types
        failure[0] = (
            f"--run.trackers {' '.join(trackers)}: cannot start "
            f"({type(error).__name__}: {first_line(error)}); log in to it, use its offline mode "
            "(WANDB_MODE=offline), or leave it out"
        )
    if accelerator.num_processes > 1:
        broadcast_object_list(failure)
    if failure[0]:
        raise ConfigError(failure[0])


def _accepted(config: Mapping[str, Any]) -> dict[str, int | float | str | bool]:
    """Return the configuration by ``group.field``, with values that trackers accept."""
    return {
        name: value if isinstance(value, int | float | str) else json.dumps(value)
        for name, value in flat(config).items()
    }


_FAILED: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Trackers whose failure has been logged."""


def for_each_tracker(accelerator: Accelerator, action: Callable[[Any], None]) -> None:
    """Call ``action`` with every tracker; call it on the main process.

    A tracker's first error is logged, not raised: the run's folder has the same data.
    """
    for tracker in accelerator.trackers:
        try:
            action(tracker)
        except Exception as error:  # trackers raise various types
            if tracker in _FAILED:
                continue
            _FAILED.add(tracker)
            log.warning(
                "the tracker %s failed (%s: %s); the run continues, and its folder has everything",
                tracker.name,
                type(error).__name__,
                first_line(error),
            )


def log_pictures(accelerator: Accelerator, pictures: Iterable[Path], *, step: int) -> None:
    """Log PNG files to the trackers that take pictures; call it on the main process."""
    for path in pictures:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        for_each_tracker(accelerator, partial(_log_picture, path=path, pixels=pixels, step=step))


def _log_picture(tracker: Any, path: Path, pixels: np.ndarray, step: int) -> None:
    if hasattr(tracker, "log_images"):
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        shown = pixels[None] if tracker.name in _BATCHES else pixels
        tracker.log_images({path.stem: shown}, step=step, **options)
    elif hasattr(tracker, "log_artifact"):
        tracker.log_artifact(str(path))
    else:
        log.info("%s takes no pictures; %s is only in the run's folder", tracker.name, path.name)
