"""The output folder of a run: metrics.jsonl, checkpoints, pictures, record.json, export."""

import dataclasses
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

import pcd_hub
from pcd_hub.data.uris import is_file
from pcd_hub.errors import CheckpointError, ConfigError, first_line
from pcd_hub.train.launch import from_main_process
from pcd_hub.train.monitors.trackers import log_pictures, start_trackers, tell
from pcd_hub.train.run_folder.preflight import check_run_folder
from pcd_hub.train.run_folder.resume import Change, changed_inputs, changed_settings, check_length

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("pcd_hub")


class RunSettings(Protocol):
    """What every training recipe's ``config.run`` says."""

    @property
    def output_dir(self) -> Path | None: ...
    @property
    def resume(self) -> bool: ...
    @property
    def accept_changed_data(self) -> bool: ...
    @property
    def keep_checkpoints(self) -> int: ...
    @property
    def trackers(self) -> tuple[str, ...]: ...
    @property
    def project(self) -> str: ...
    @property
    def run_name(self) -> str | None: ...


class RunConfigured(Protocol):
    """A recipe's configuration, a dataclass."""

    @property
    def run(self) -> RunSettings: ...


class RunFolder:
    """Owned by the main process; the others know the path."""

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        config: RunConfigured,
        *,
        inputs: Mapping[str, str],
    ) -> None:
        self.path = path
        self.inputs = dict(inputs)
        """Fingerprints by name: "data", and of the weights that the run begins with."""
        self.changes: list[Change] = []
        """What changed whenever the run was resumed."""
        self._accelerator = accelerator
        self._config = config
        self._logged_pictures: set[Path] = set()
        self._step = 0
        self.started = time.monotonic()
        self.code = _git()
        """As it is when the run starts; it may be committed or edited meanwhile."""

    @classmethod
    def open(
        cls,
        accelerator: Accelerator,
        config: RunConfigured,
        *,
        default_name: str,
        inputs: Mapping[str, str],
    ) -> "RunFolder":
        """Make the folder, or enter it again with ``--run.resume``.

        Args:
            accelerator: Of the run.
            config: Of the run.
            default_name: Of the folder, if none is asked for.
            inputs: Fingerprints by name, "data" among them; a resumed run needs the same.

        Raises:
            ConfigError: If the folder holds another run, there is nothing to resume, or another
                process still goes on there.
        """
        outcome: Path | str = ""
        if accelerator.is_main_process:
            try:
                outcome = _prepare(config, default_name)
            except (ConfigError, OSError) as error:
                # Raised on every process below, or the others would wait for ever.
                outcome = str(error)
        outcome = cast("Path | str", from_main_process(accelerator, outcome))
        if isinstance(outcome, str):
            raise ConfigError(outcome)
        inputs = cast("Mapping[str, str]", from_main_process(accelerator, dict(inputs)))
        return cls(outcome, accelerator, config, inputs=inputs)

    def config_dict(self) -> dict[str, Any]:
        """The resolved configuration in plain containers, without fields that only say where."""
        return _resolved(self._config)

    def recorded_config(self) -> dict[str, Any]:
        """The same for a record, with what changed whenever the run was resumed."""
        return self.config_dict() | self.recorded_changes()

    def recorded_changes(self) -> dict[str, Any]:
        """``{"changed_at_resume": [...]}``, or nothing."""
        return {"changed_at_resume": self.changes} if self.changes else {}

    def start_trackers(self) -> None:
        """Let the trackers write into this folder, and tell them the configuration.

        Raises:
            ConfigError: If one refuses.
        """
        run = self._config.run
        if run.trackers:
            start_trackers(
                self._accelerator,
                run.trackers,
                project=run.project,
                run_name=run.run_name or self.path.name,
                folder=self.path,
                config=self.config_dict(),
            )

    def log_pictures(self) -> None:
        """Give the trackers the pictures that they have not had; called by the main process."""
        pictures = {*(self.path / "pictures").glob("*.png")} - self._logged_pictures
        if self._config.run.trackers:
            log_pictures(self._accelerator, sorted(pictures), step=self._step)
        self._logged_pictures |= pictures

    def end_trackers(self) -> None:
        """Give the trackers the last pictures, and end them; called by the main process."""
        self.log_pictures()
        tell(self._accelerator, lambda tracker: tracker.finish())

    def write_metrics(self, **metrics: float) -> None:
        """Append one line to metrics.jsonl, and tell the trackers.

        Raises:
            CheckpointError: If it cannot be written.
        """
        if self._accelerator.is_main_process:
            path = self.path / "metrics.jsonl"
            with self.writing(path), path.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            self._step = step = int(metrics["step"])
            tell(self._accelerator, lambda tracker: tracker.log(metrics, step=step))

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Explain a failed write of ``path`` before the last step is done.

        Raises:
            CheckpointError: For any OSError or RuntimeError inside the block; ``torch.save`` tells
                of a full disk by the latter.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:
            before = sorted((self.path / "checkpoints").glob("step_*.pt"))
            raise CheckpointError(
                f"cannot write {path} ({first_line(error)}); the last checkpoint is "
                f"{before[-1].name if before else 'none'}. Make room, then add --run.resume"
            ) from error

    # Checkpoints: one file each, whole or not there, with its sha256 beside it.

    def save_checkpoint(
        self, step: int, state: dict[str, Any], stream_states: dict[int, Any]
    ) -> None:
        """Write all that affects the next step; called by every process after ``step`` steps.

        Raises:
            CheckpointError: If it cannot be written; the ones before stand.
        """
        per_process = gather_object([{"rng": _rng_state(), "stream": stream_states}])
        if not self._accelerator.is_main_process:
            return
        final = self.path / "checkpoints" / f"step_{step:08d}.pt"
        everything = {
            "step": step,
            "config": self.config_dict(),
            "inputs": self.inputs,
            "changes": self.changes,
            "per_process": per_process,
            **state,
        }
        with self.writing(final):
            _save_whole(everything, final)
            for old in sorted(final.parent.glob("step_*.pt"))[: -self._config.run.keep_checkpoints]:
                old.unlink()
                _sum_file(old).unlink(missing_ok=True)

    def load_checkpoint(self, *, steps: int) -> dict[str, Any]:
        """The last whole checkpoint, with the metrics after it cut off.

        A damaged one is passed over for the one before, renamed, and it is said.

        Args:
            steps: After which the run ends.

        Raises:
            CheckpointError: If none is whole, it is not on this machine, it was written with other
                settings or data, or lies behind the end.
        """
        chosen = None
        if self._accelerator.is_main_process:
            for rest in (self.path / "checkpoints").glob("*.draft"):  # of a write that was killed
                rest.unlink()
            chosen = self._last_whole()
        chosen = cast("Path | None", from_main_process(self._accelerator, chosen))
        if chosen is None:
            raise CheckpointError(
                f"{self.path} holds no whole checkpoint to resume from; "
                "start anew in another folder"
            )
        if not chosen.exists():
            raise CheckpointError(
                f"{chosen} is not on this machine; to resume, --run.output-dir must lie where all "
                "machines see it"
            )
        state = torch.load(chosen, map_location="cpu", weights_only=True)
        self._note_changes(state, steps)
        self._restore_process(state["per_process"])
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            with self.writing(self.path / "metrics.jsonl"):
                self._cut_metrics(int(state["step"]))
            path = self.path / "changes.json"
            if self.changes:
                with self.writing(path):
                    _write_whole(path, json.dumps(self.changes, indent=2) + "\n")
        return state

    def _note_changes(self, state: dict[str, Any], steps: int) -> None:
        step, run = int(state["step"]), self._config.run
        changes = changed_settings(state["config"], self.config_dict(), step=step)
        changes += changed_inputs(
            state.get("inputs", {}), self.inputs, step=step, accept=run.accept_changed_data
        )
        check_length(step, steps)
        for change in changes:
            log.info(
                "resumed after step %d with another %s (%s, now %s)",
                *(change[key] for key in ("after_step", "what", "from", "to")),
            )
        self.changes = [*state.get("changes", []), *changes]

    def _last_whole(self) -> Path | None:
        for path in sorted((self.path / "checkpoints").glob("step_*.pt"), reverse=True):
            if (damage := _damage(path)) is None:
                return path
            log.warning("%s is damaged (%s); going on from the one before", path, damage)
            path.replace(path.with_suffix(".damaged"))  # it must not count as one that is kept
        return None

    def stream_states(self, state: dict[str, Any]) -> dict[int, Any]:
        """This process's position in a stream, from a loaded checkpoint.

        Raises:
            CheckpointError: If as many processes as now would not read the stream on.
        """
        per_process = state["per_process"]
        if self._same_world(per_process):
            return per_process[self._accelerator.process_index]["stream"]
        if any(process["stream"] for process in per_process):
            raise CheckpointError(
                f"the stream was read by {len(per_process)} processes, now there are "
                f"{self._accelerator.num_processes}; resume with as many as before"
            )
        return {}

    def _restore_process(self, per_process: list[dict[str, Any]]) -> None:
        if self._same_world(per_process):
            rng = per_process[self._accelerator.process_index]["rng"]
            torch.set_rng_state(rng["cpu"])
            if torch.cuda.is_available() and "cuda" in rng:
                torch.cuda.set_rng_state(rng["cuda"])
        else:
            log.info(
                "resumed by %d processes, stopped with %d: the same images in the same order, sums "
                "round otherwise; the torch random state of dropout and the like starts anew",
                self._accelerator.num_processes,
                len(per_process),
            )

    def _same_world(self, per_process: list[dict[str, Any]]) -> bool:
        return len(per_process) == self._accelerator.num_processes

    def _cut_metrics(self, step: int) -> None:
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            whole = (line for line in lines if line.endswith("\n"))  # the last may be half written
            _write_whole(path, "".join(line for line in whole if json.loads(line)["step"] < step))


def _save_whole(everything: dict[str, Any], final: Path) -> None:
    """A checkpoint on the disk with its sum beside it, or neither."""
    draft, sum_file = final.with_suffix(".draft"), _sum_file(final)
    final.parent.mkdir(exist_ok=True)
    try:
        torch.save(everything, draft)
        _flush_to_disk(draft)
        sum_file.write_text(f"{_sha256(draft)}  {final.name}\n")
        _flush_to_disk(sum_file)
        draft.replace(final)
        _flush_names_to_disk(final.parent)  # before the older ones go
    except (OSError, RuntimeError):
        draft.unlink(missing_ok=True)
        sum_file.unlink(missing_ok=True)
        raise


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's file, if anything."""
    try:
        stated = _sum_file(checkpoint).read_text().split()[0]
        return None if _sha256(checkpoint) == stated else "its sha256 is another"
    except (OSError, IndexError, UnicodeDecodeError) as error:
        return f"no sha256 beside it: {type(error).__name__}"


def _sum_file(checkpoint: Path) -> Path:
    """As sha256sum writes and checks it."""
    return checkpoint.with_suffix(".pt.sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    """Past the system's cache: a name must not point to pages that a power cut loses."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_names_to_disk(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _resolved(config: RunConfigured) -> dict[str, Any]:
    resolved = json.loads(json.dumps(dataclasses.asdict(cast("Any", config)), default=str))
    for name in ("output_dir", "resume", "accept_changed_data", "project", "run_name"):
        del resolved["run"][name]
    return resolved


def _prepare(config: RunConfigured, default_name: str) -> Path:
    run = config.run
    if run.resume:
        path = run.output_dir or _free(Path("runs") / default_name, resume=True)
        if not is_file(path / "config.json"):
            raise ConfigError(
                f"--run.resume: {path} holds no run; name its folder with --run.output-dir"
            )
        for part in ("", "checkpoints", "pictures"):
            check_run_folder(path / part)
    else:
        path = new_folder(run.output_dir, default_name)
        try:
            with (path / "config.json").open("x") as file:
                file.write(json.dumps(_resolved(config), indent=2) + "\n")
        except FileExistsError:
            raise ConfigError(
                f"another run has just begun in {path}; name another --run.output-dir"
            ) from None
    _hold(path / "config.json")
    return path


def _hold(file: Path) -> None:
    """Keep others from the folder for as long as this process lives, and no longer.

    torchrun that is killed leaves its ranks behind, which go on writing. The system lets go as soon
    as this process closes the file, however it was opened: nothing may open it again.

    Raises:
        ConfigError: If another process holds it.
    """
    if sys.platform == "win32":
        return
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise ConfigError(
            f"another process goes on in {file.parent}; wait for it, or end it "
            f"(fuser {file} names it)"
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s); let no other run into its folder", file, error)


def new_folder(asked: Path | None, default_name: str) -> Path:
    """Make the folder of a run: the one that was asked for, or the next free ``runs/NAME``.

    Raises:
        ConfigError: If it is not empty, or cannot be made and written.
    """
    path = asked or _free(Path("runs") / default_name, resume=False)
    check_run_folder(path)
    try:
        if path.exists() and any(path.iterdir()):
            raise ConfigError(
                f"{path} is not empty; "
                "add --run.resume to go on there, or name another --run.output-dir"
            )
        path.mkdir(parents=True, exist_ok=True)
        (path / ".gitignore").write_text("*\n")  # wherever it lies, it is no part of a checkout
    except OSError as error:
        raise ConfigError(
            f"--run.output-dir {path}: cannot make this folder or write into it "
            f"({error.strerror or error}); name another"
        ) from error
    return path


def _free(path: Path, *, resume: bool) -> Path:
    """``path``, or ``path-2`` ... : the first that is free; to resume, the last that is taken."""
    candidate, last, number = path, path, 1
    while candidate.exists():
        number += 1
        last, candidate = candidate, path.with_name(f"{path.name}-{number}")
    return last if resume else candidate


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def provenance(accelerator: Accelerator, folder: RunFolder) -> dict[str, Any]:
    """What a record says of code, library versions and hardware."""
    around = surroundings(folder.code)
    around["hardware"] |= {
        "processes": accelerator.num_processes,
        "mixed_precision": str(accelerator.mixed_precision),
        "seconds": round(time.monotonic() - folder.started),
    }
    return around


def surroundings(code: dict[str, Any] | None = None) -> dict[str, Any]:
    """Time, code, library versions and device, as they are now.

    Args:
        code: Commit and dirty flag, if they were taken earlier.
    """
    libraries = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pycocotools")
    libraries += ("opencv-python-headless",)  # draws the views; not everywhere installed
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": {"pcd_hub": pcd_hub.__version__, **(code or _git())},
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in libraries if (found := _version(name))},
        },
        "hardware": {"device": gpu or f"CPU, {torch.get_num_threads()} threads"},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


_CODE = ("pcd_hub", "recipes", "scripts", "pyproject.toml")


def _git() -> dict[str, Any]:
    """Commit of the checkout the recipe runs from, and whether its code was changed since.

    Both None where it is none. A new file counts if it lies among the code: not a run's folder, a
    tracker's, or a dry run's.
    """

    def ask(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parents[3]), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        return answer.stdout.strip() if answer.returncode == 0 else None

    try:
        commit, status = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--", *_CODE)
    except FileNotFoundError:  # no git on this machine
        commit = status = None
    return {"commit": commit, "dirty": bool(status) if status is not None else None}
