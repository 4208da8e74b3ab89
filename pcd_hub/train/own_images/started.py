"""What a run's folder tells about a run that is resumed: its settings and its length."""

import json
from pathlib import Path
from typing import Any

from pcd_hub.train.configs.files import read_fields
from pcd_hub.train.run_folder.resume import LENGTH, MAY_CHANGE, option

MAX_STEPS = "run.max_steps"


def started_settings(config: object, folder: Path) -> dict[str, Any]:
    """Return the settings with which the run in ``folder`` was started, and its current length.

    Args:
        config: A configuration of the same recipe.
        folder: Folder of the run.

    Returns:
        Values by field, as ``group.field``.

    Raises:
        ConfigError: If config.json cannot be read.
    """
    fields = read_fields(config, str(folder / "config.json"))
    return fields | {MAX_STEPS: length(folder) or fields.get(MAX_STEPS)}


def student_folders(folder: Path) -> tuple[Path, ...]:
    """Return the folders of the students that a run trains in one pass; its own if it has one."""
    try:
        architectures = json.loads((folder / "config.json").read_text())["student"]["arch"]
        names = [name.strip() for name in architectures.split(",")]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        names = []
    return tuple(folder / name for name in names) if len(names) > 1 else (folder,)


def length(folder: Path) -> int | None:
    """Return the length that the run got when it was resumed; None if it has kept its first."""
    lengths = [_length(each) for each in student_folders(folder)]
    return max((steps for steps in lengths if steps is not None), default=None)


def changed_options(folder: Path) -> dict[str, Any]:
    """Return the options that got another value when the run was resumed, without its length.

    The values are the last ones, by name of the option.
    """
    names = {option(name) for name in MAY_CHANGE.difference(LENGTH)}
    return {
        name: value
        for each in student_folders(folder)
        for name, value in _changes(each)
        if name in names
    }


def _length(folder: Path) -> int | None:
    lengths = [value for name, value in _changes(folder) if name == option(MAX_STEPS)]
    return next((steps for steps in reversed(lengths) if isinstance(steps, int)), None)


def _changes(folder: Path) -> list[tuple[str, Any]]:
    """Return what changed each time that a run was resumed, and its new value."""
    try:
        changes = json.loads((folder / "changes.json").read_text())
        return [(change["what"], change["to"]) for change in changes]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def steps_done(folder: Path) -> int:
    """Return the number of steps in the last checkpoint; 0 if there is none."""
    names = [
        file.stem.removeprefix("step_")
        for each in student_folders(folder)
        for file in (each / "checkpoints").glob("step_*.pt")
    ]
    return max((int(name) for name in names if name.isdecimal()), default=0)
