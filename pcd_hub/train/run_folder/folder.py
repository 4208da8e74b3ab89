"""Output folder of a run: created or reopened, locked, with metrics and pictures."""

import json
import logging
import os
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, cast

from accelerate import Accelerator

from pcd_hub.data.sources.uris import is_file
from pcd_hub.errors import CheckpointError, ConfigError, first_line
from pcd_hub.files.write import atomic_write
from pcd_hub.train.configs.files import recorded
from pcd_hub.train.configs.run import RunConfig
from pcd_hub.train.launch import from_main_process
from pcd_hub.train.monitors.trackers import for_each_tracker, log_pictures, start_trackers
from pcd_hub.train.run_folder.how_to_continue import how_to_continue
from pcd_hub.train.run_folder.preflight import check_run_folder
from pcd_hub.train.run_folder.provenance import code_state, provenance
from pcd_hub.train.run_folder.resume import Change

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("pcd_hub")


class RunConfigured(Protocol):
    """A recipe's configuration, a dataclass."""

    @property
    def run(self) -> RunConfig: ...


class RunFolder:
    """Folder of a run, written by the main process; the other processes know its path.

    Args:
        path: The folder.
        accelerator: The run's Accelerator.
        config: The run's configuration, with the values in use.
        requested: The configuration before its defaults were resolved, if they were.
        inputs: Fingerprints of the data ("data") and of the initial weights, by name.
    """

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        config: RunConfigured,
        *,
        requested: RunConfigured | None = None,
        inputs: Mapping[str, str],
    ) -> None:
        self.path = path
        self.inputs = dict(inputs)
        self.changes: list[Change] = []
        """Settings and inputs that changed when the run was resumed."""
        self._accelerator = accelerator
        self._config = config
        self._requested = requested or config
        self._logged_pictures: set[Path] = set()
        self._step = 0
        self._started = time.monotonic()
        self._code = code_state()  # at the start: it may be edited or committed during the run

    @classmethod
    def open(
        cls,
        accelerator: Accelerator,
        config: RunConfigured,
        *,
        requested: RunConfigured | None = None,
        default_name: str,
        inputs: Mapping[str, str],
    ) -> "RunFolder":
        """Create the folder, or reopen it with ``--run.resume``; call it on every process.

        Args:
            accelerator: The run's Accelerator.
            config: The run's configuration, with the values in use.
            requested: The configuration before its defaults were resolved, if they were.
            default_name: Name of the folder below ``runs``, if none is configured.
            inputs: Fingerprints by name, "data" among them; a resumed run needs the same.

        Raises:
            ConfigError: If the folder contains another run, there is nothing to resume, or another
                process is running there.
        """
        outcome: Path | str = ""
        lock: int | None = None
        if accelerator.is_main_process:
            try:
                outcome = prepare_folder(config, default_name)
                lock = _lock(outcome / "config.json")
            except (ConfigError, OSError) as error:
                outcome = str(error)  # raised below on every process: the others are waiting
        outcome = cast("Path | str", from_main_process(accelerator, outcome))
        if isinstance(outcome, str):
            raise ConfigError(outcome)
        inputs = cast("Mapping[str, str]", from_main_process(accelerator, dict(inputs)))
        folder = cls(outcome, accelerator, config, requested=requested, inputs=inputs)
        if lock is not None:
            weakref.finalize(folder, os.close, lock)
        return folder

    @property
    def settings(self) -> RunConfig:
        """The recipe's ``config.run``."""
        return self._config.run

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def config_dict(self) -> dict[str, Any]:
        """Return the resolved configuration in plain containers, without names and paths."""
        return recorded(self._config)

    def requested_dict(self) -> dict[str, Any]:
        """Return the requested configuration, with None, "auto" or "match" for defaults."""
        return recorded(self._requested)

    def default_dict(self) -> dict[str, Any]:
        """Return the recipe's default configuration: the values of a run older than a field."""
        return recorded(type(self._config)())

    def recorded_config(self) -> dict[str, Any]:
        """Return the configuration for a record, with what changed when the run was resumed."""
        return self.config_dict() | self.recorded_changes()

    def recorded_changes(self) -> dict[str, Any]:
        """Return ``{"changed_at_resume": [...]}``, or nothing."""
        return {"changed_at_resume": self.changes} if self.changes else {}

    def provenance(self) -> dict[str, Any]:
        """Describe time, code, library versions and hardware of the run, for a record."""
        hardware = {
            "processes": self._accelerator.num_processes,
            "mixed_precision": str(self._accelerator.mixed_precision),
            "seconds": round(time.monotonic() - self._started),
        }
        return provenance(code=self._code, hardware=hardware)

    def start_trackers(self) -> None:
        """Start the trackers and log the configuration to them.

        Raises:
            ConfigError: If a tracker fails to start.
        """
        if self.settings.trackers:
            start_trackers(
                self._accelerator,
                self.settings.trackers,
                project=self.settings.project,
                run_name=self.settings.run_name or self.path.name,
                folder=self.path,
                config=self.config_dict(),
            )

    def log_pictures(self) -> None:
        """Log the new pictures to the trackers; call it on the main process."""
        pictures = {*(self.path / "pictures").glob("*.png")} - self._logged_pictures
        if self.settings.trackers:
            log_pictures(self._accelerator, sorted(pictures), step=self._step)
        self._logged_pictures |= pictures

    def end_trackers(self) -> None:
        """Log the last pictures and close the trackers; call it on the main process."""
        self.log_pictures()
        for_each_tracker(self._accelerator, lambda tracker: tracker.finish())

    def write_metrics(self, **metrics: float) -> None:
        """Append one line to metrics.jsonl, and log it to the trackers.

        Raises:
            CheckpointError: If it cannot be written.
        """
        if self._accelerator.is_main_process:
            path = self.path / "metrics.jsonl"
            with self.writing(path), path.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            self._step = step = int(metrics["step"])
            for_each_tracker(self._accelerator, lambda tracker: tracker.log(metrics, step=step))

    def rewind(self, step: int) -> None:
        """Remove the metrics from ``step`` on, and write what changed to changes.json.

        Raises:
            CheckpointError: If they cannot be written.
        """
        metrics, changes = self.path / "metrics.jsonl", self.path / "changes.json"
        if metrics.exists():
            lines = metrics.read_text().splitlines(keepends=True)
            complete = (line for line in lines if line.endswith("\n"))  # a kill may cut the last
            kept = "".join(line for line in complete if json.loads(line)["step"] < step)
            with self.writing(metrics):
                atomic_write(metrics, kept)
        with self.writing(changes):
            if self.changes:
                atomic_write(changes, json.dumps(self.changes, indent=2) + "\n")
            else:  # those of a resumption that saved no step are undone
                changes.unlink(missing_ok=True)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Raise a clear error if writing ``path`` fails before the end of the training.

        Raises:
            CheckpointError: For any OSError or RuntimeError in the block; ``torch.save`` raises the
                latter when the disk is full.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:
            reason = first_line(error)
            if isinstance(error, RuntimeError):
                reason = f"the disk is probably full; torch.save: {reason[:80]}"
            saved = sorted(self.checkpoints.glob("step_*.pt"))
            raise CheckpointError(
                f"cannot write {path} ({reason}); the last checkpoint is "
                f"{saved[-1].name if saved else 'none'}; free some space, then "
                + (
                    f"continue with {how_to_continue(self.path)}"
                    if saved
                    else "start the run again, in another folder"
                )
            ) from error


def new_folder(
    requested: Path | None, default_name: str, *, create: bool = True, can_resume: bool = True
) -> Path:
    """Create the requested folder of a run, or the next free ``runs/NAME``; or only check it.

    Args:
        requested: The folder; None for the next free one.
        default_name: Name of the folder below ``runs``.
        create: Create it.
        can_resume: Whether the recipe has ``--run.resume``, for the error message.

    Raises:
        ConfigError: If it is not empty, or cannot be created and written.
    """
    path = requested or _numbered(Path("runs") / default_name, resume=False)
    check_run_folder(path)
    try:
        if path.exists() and any(path.iterdir()):
            is_run = can_resume and is_file(path / "config.json")
            resume = f"continue the run in it with {how_to_continue(path)}, or " * is_run
            raise ConfigError(f"{path} is not empty; {resume}name another --run.output-dir")
        if create:
            path.mkdir(parents=True, exist_ok=requested is not None)
            (path / ".gitignore").write_text("*\n")  # the run must not mark a checkout as changed
    except OSError as error:
        if requested is None and isinstance(error, FileExistsError):  # another run was faster
            return new_folder(requested, default_name, can_resume=can_resume)
        raise ConfigError(
            f"--run.output-dir {path}: cannot make this folder or write to it "
            f"({error.strerror or error}); name another"
        ) from error
    return path


@contextmanager
def output_folder(requested: Path | None, default_name: str) -> Iterator[Path]:
    """Create the folder as :func:`new_folder`; remove it if the block fails before it writes.

    Raises:
        ConfigError: See :func:`new_folder`.
    """
    existed = requested is not None and requested.exists()
    folder = new_folder(requested, default_name, can_resume=False)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # not empty
            if [path.name for path in folder.iterdir()] == [".gitignore"]:
                (folder / ".gitignore").unlink()
            if not existed:
                folder.rmdir()
        raise


def _numbered(path: Path, *, resume: bool) -> Path:
    """Return the first free of ``path``, ``path-2`` ...; to resume, the last existing one."""
    candidate, last, number = path, path, 1
    while candidate.exists():
        number += 1
        last, candidate = candidate, path.with_name(f"{path.name}-{number}")
    return last if resume else candidate


def prepare_folder(config: RunConfigured, default_name: str) -> Path:
    """Create the folder of a new run with its config.json, or return that of a resumed one.

    Raises:
        ConfigError: If the folder contains another run, or there is nothing to resume.
    """
    prepare = existing_run if config.run.resume else _new_run
    return prepare(config, default_name)


def existing_run(config: RunConfigured, default_name: str) -> Path:
    """Return the folder of the run that ``--run.resume`` continues.

    Raises:
        ConfigError: If it contains no run, or cannot be written.
    """
    path = config.run.output_dir or _numbered(Path("runs") / default_name, resume=True)
    if not is_file(path / "config.json"):
        raise ConfigError(
            f"--run.resume: {path} contains no run; name its folder with --run.output-dir"
        )
    for part in ("", "checkpoints", "pictures"):
        check_run_folder(path / part)
    return path


def _new_run(config: RunConfigured, default_name: str) -> Path:
    path = new_folder(config.run.output_dir, default_name)
    try:
        with (path / "config.json").open("x") as file:
            file.write(json.dumps(recorded(config), indent=2) + "\n")
    except FileExistsError:
        raise ConfigError(
            f"another run has just started in {path}; name another --run.output-dir"
        ) from None
    return path


def _lock(file: Path) -> int | None:
    """Lock the folder; return the handle that holds the lock, if the system has locks.

    The workers of a killed torchrun continue to write, so a new run must not share their folder.
    The system releases the lock as soon as this process closes any handle of the file; therefore
    nothing else may open it during the run.

    Raises:
        ConfigError: If another process holds the lock.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise ConfigError(
            f"another process is running in {file.parent}; wait for it, or end it "
            f"(fuser {file} prints its id)"
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("cannot lock %s (%s); start no other run in its folder", file, error)
    return descriptor
