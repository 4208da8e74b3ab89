"""One run of a recipe: its options and state on disk, started, resumed or recorded as failed.

::

    rows/ROW/seed-SEED/JOB         folder of the run, as the recipe writes it
    rows/ROW/seed-SEED/JOB.yaml    its options, for --config of the recipe
    rows/ROW/seed-SEED/JOB.json    its state: started, done or failed, and the reason
"""

import contextlib
import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from pcd_hub.errors import ConfigError, DataError, PCDHubError, first_line
from pcd_hub.files.write import atomic_write
from pcd_hub.train.configs.fields import as_typed
from pcd_hub.train.configs.files import as_yaml, plain, read_fields, with_fields
from pcd_hub.train.configs.flat import flat
from pcd_hub.train.configs.labelled import ProbeDataConfig
from pcd_hub.train.own_images.embedded import embedded
from pcd_hub.train.run_folder.preflight import check_run_folder
from pcd_hub.train.run_folder.resume import option
from pcd_hub.train.signals import StoppedRun

log = logging.getLogger("pcd_hub")

State = Literal["started", "done", "failed"]

ROWS = "rows"
"""Folder of all rows in the folder of a lab."""

_MAY_DIFFER = frozenset(
    {
        *("run.log_every_steps", "run.checkpoint_every_steps", "run.keep_checkpoints"),
        *("run.trackers", "run.project", "run.run_name", "run.name", "run.store"),
        *("data.num_workers", "speed.foreach", "speed.keep_memory", "teacher.cache_gb"),
        "probe_scenes",
        *(f"probe_data.{field.name}" for field in fields(ProbeDataConfig)),
    }
)
"""Fields that do not change the result."""

_NOT_WRITTEN = {"run.output_dir", "run.resume"}
"""Fields that files of options never have."""

_RUN_AGAIN = "remove it to run that job again"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a recipe for one row at one seed."""

    folder: Path
    """Folder of the run."""
    model: str | None
    """The model to evaluate, if the row is not trained."""
    config: Any
    """Configuration of the recipe."""
    set_by_lab: frozenset[str]
    """Fields of the configuration that depend on row and seed; they are given as options."""
    not_used: frozenset[str] = frozenset()
    """Fields that the recipe derives itself."""
    main: Callable[[list[str]], object]
    """Entry point of the recipe."""
    arguments: Callable[[], list[str]]
    """Further arguments, found when the job starts."""
    can_resume: bool
    """Whether the recipe continues from checkpoints."""


@contextlib.contextmanager
def alone_in(folder: Path, *, lock: bool = True) -> Iterator[None]:
    """Make the folder of many runs, and keep other processes out of it.

    The system releases the lock of a killed process.

    Raises:
        ConfigError: If several processes were launched, another one runs in the folder, or it
            cannot be written.
    """
    if (size := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"WORLD_SIZE {size}: expected one process; start it without a launcher")
    check_run_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0) if lock else contextlib.nullcontext():
            yield
    except Timeout:
        raise ConfigError(
            f"another process is running in {folder}; wait for it, or use another --output-dir"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder} ({error.strerror or first_line(error)}); free some space, "
            "then start the same command again"
        ) from error


def row_folder(folder: Path, row: str, seed: int) -> Path:
    """Return the folder of a row's jobs at one seed."""
    return folder / ROWS / row / f"seed-{seed}"


def options_file(folder: Path) -> Path:
    """Return the file with the options of the job in ``folder``."""
    return folder.with_name(f"{folder.name}.yaml")


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state of a job: ``state``, ``model``, ``reason`` ...; empty if it never started.

    Raises:
        DataError: If the file is damaged.
    """
    file = _state_file(folder)
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file} ({first_line(error)}); {_RUN_AGAIN}") from error
    if not isinstance(found, dict) or found.get("state") not in {"started", "done", "failed"}:
        raise DataError(f"{file} is not the state of a job; {_RUN_AGAIN}")
    return found


def check_options(job: Job) -> None:
    """Check that a job that was begun or finished had the same options.

    Raises:
        ConfigError: If it had others.
    """
    state = read_state(job.folder)
    if state.get("state") in {None, "failed"}:
        return
    changes = _changes(job, state)
    for name, (was, now) in changes.items():
        raise ConfigError(
            f"{job.folder} was run with {option(name)} {as_typed(was)}, found {as_typed(now)}; "
            "restore it, or use another --output-dir"
        )


def run_job(job: Job, *, retry_failed: bool = False) -> State:
    """Run a job unless it is done; return its state.

    An error is recorded, and the lab continues. A signal or a kill leaves the state ``started``.
    """
    state = read_state(job.folder)
    if state.get("state") == "done":
        return "done"
    same = bool(state) and not _changes(job, state)
    if state.get("state") == "failed" and same and not retry_failed:
        log.warning("%s failed before: %s (--retry-failed)", job.folder, state.get("reason"))
        return "failed"
    resume = same and job.can_resume and any(job.folder.glob("checkpoints/step_*.pt"))
    if not resume:
        shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    without = job.set_by_lab | job.not_used
    known = {name for name in without if name in flat(plain(job.config))}
    atomic_write(options_file(job.folder), as_yaml(job.config, without=known - _NOT_WRITTEN))
    _write_state(job, "started")
    log.info("%s %s", "resume" if resume else "run", job.folder)
    try:
        failure = _call(job, ["--run.resume"] if resume else [])
    except StoppedRun as stopped:
        stopped.args = (stopped.message("the same command"),)
        raise
    if failure:
        log.error("%s failed: %s", job.folder, failure["reason"])
    _write_state(job, "failed" if failure else "done", **failure)
    return "failed" if failure else "done"


def _call(job: Job, resume: list[str]) -> dict[str, str]:
    """Call the recipe; return nothing, or why it failed."""
    try:
        with embedded():
            job.main(
                [
                    f"--config={options_file(job.folder)}",
                    f"--run.output-dir={job.folder}",
                    *resume,
                    *job.arguments(),
                ]
            )
    except Exception as error:  # whatever ends one run must not end the others
        reason = first_line(error)
        if isinstance(error, PCDHubError):
            return {"reason": reason}
        return {
            "reason": f"{type(error).__name__}: {reason}",
            "traceback": "".join(traceback.format_exception(error)),
        }
    return {}


def _changes(job: Job, state: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ from those of the job's last start, as (before, now)."""
    try:
        kind = type(job.config)()
        before = flat(plain(with_fields(kind, read_fields(kind, str(options_file(job.folder))))))
    except ConfigError:  # another recipe's, or of a release with other fields
        return {"recipe": ("another recipe or release", "this one")}
    now = flat(plain(job.config))
    ignored = job.set_by_lab | job.not_used | _MAY_DIFFER
    changed = {
        name: (before.get(name), value)
        for name, value in now.items()
        if name not in ignored and before.get(name) != value
    }
    if state.get("model") != job.model:
        changed["model"] = (state.get("model") or "a trained student", job.model)
    return changed


def _state_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _write_state(job: Job, state: State, **facts: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    found = {"state": state, "at": now, "model": job.model, **facts}
    atomic_write(_state_file(job.folder), json.dumps(found, indent=2) + "\n")
