"""Checkpoints of a run: one atomically written file each, with its sha256 in a second file."""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pcd_hub.errors import CheckpointError
from pcd_hub.files.write import atomic_file, atomic_write
from pcd_hub.train.launch import from_main_process
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.resume import changed_inputs, changed_settings, check_length
from pcd_hub.weights.manifest import sha256

log = logging.getLogger("pcd_hub")


class Checkpoints:
    """Checkpoints in the folder of a run.

    Args:
        folder: The run's folder.
        accelerator: The run's Accelerator; its main process writes.
    """

    def __init__(self, folder: RunFolder, accelerator: Accelerator) -> None:
        self._folder = folder
        self._accelerator = accelerator

    def save(self, step: int, state: dict[str, Any], stream_states: dict[int, Any]) -> None:
        """Save everything that affects the next step; call it on every process.

        Args:
            step: Completed steps.
            state: State dict by name.
            stream_states: Position in a stream of each loader of this process.

        Raises:
            CheckpointError: If it cannot be written; the earlier checkpoints are kept.
        """
        per_process = gather_object([{"rng": _rng_state(), "stream": stream_states}])
        if not self._accelerator.is_main_process:
            return
        file = self._folder.checkpoints / f"step_{step:08d}.pt"
        everything = {
            "step": step,
            "config": self._folder.config_dict(),
            "inputs": self._folder.inputs,
            "changes": self._folder.changes,
            "per_process": per_process,
            **state,
        }
        with self._folder.writing(file):
            write_checkpoint(everything, file)
            saved = sorted(file.parent.glob("step_*.pt"))
            for old in saved[: -self._folder.settings.keep_checkpoints]:
                old.unlink()
                sha256_file(old).unlink(missing_ok=True)

    def load(self, *, total_steps: int) -> dict[str, Any]:
        """Load the last undamaged checkpoint, and remove the metrics of later steps.

        Damaged ones are renamed, which is logged.

        Args:
            total_steps: Steps of the whole run.

        Raises:
            CheckpointError: If there is none, it is not on this machine, it was written with other
                settings or data, or it has more than ``total_steps`` steps.
        """
        file = None
        if self._accelerator.is_main_process:
            for draft in self._folder.checkpoints.glob("*.draft"):  # left by a killed write
                draft.unlink()
            file = last_undamaged(self._folder.checkpoints)
        file = cast("Path | None", from_main_process(self._accelerator, file))
        if file is None:
            students = sorted(path.parent for path in self._folder.path.glob("*/checkpoints"))
            remedy = "start the run again in another folder"
            if students:
                remedy = f"it has several students; resume one of them: {students[0]}"
            raise CheckpointError(
                f"{self._folder.path} has no undamaged checkpoint to resume from; {remedy}"
            )
        if not file.exists():
            raise CheckpointError(
                f"{file} is not on this machine; to resume, --run.output-dir must be on a file "
                "system that all machines share"
            )
        state = torch.load(file, map_location="cpu", weights_only=True)
        self._check_changes(state, total_steps)
        self._restore_rng(state["per_process"])
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            self._folder.rewind(int(state["step"]))
        return state

    def stream_states(self, state: dict[str, Any]) -> dict[int, Any]:
        """Return this process's positions in a stream, from a loaded checkpoint.

        Raises:
            CheckpointError: If another number of processes read the stream.
        """
        per_process = state["per_process"]
        if self._same_processes(per_process):
            return per_process[self._accelerator.process_index]["stream"]
        if any(process["stream"] for process in per_process):
            raise CheckpointError(
                f"the stream was read by {len(per_process)} processes, found "
                f"{self._accelerator.num_processes}; resume with {len(per_process)} processes"
            )
        return {}

    def _check_changes(self, state: dict[str, Any], total_steps: int) -> None:
        step, folder = int(state["step"]), self._folder
        accept = folder.settings.accept_changed_data
        changes = changed_settings(
            state["config"],
            folder.config_dict(),
            requested=folder.requested_dict(),
            defaults=folder.default_dict(),
            step=step,
        )
        changes += changed_inputs(state.get("inputs", {}), folder.inputs, step=step, accept=accept)
        check_length(step, total_steps)
        for change in changes:
            log.info(
                "resumed after step %d with another %s (%s, now %s)",
                *(change[key] for key in ("after_step", "what", "from", "to")),
            )
        folder.changes = [*state.get("changes", []), *changes]

    def _restore_rng(self, per_process: list[dict[str, Any]]) -> None:
        if self._same_processes(per_process):
            rng = per_process[self._accelerator.process_index]["rng"]
            torch.set_rng_state(rng["cpu"])
            if torch.cuda.is_available() and "cuda" in rng:
                torch.cuda.set_rng_state(rng["cuda"])
        else:
            log.info(
                "resumed by %d processes, stopped with %d: images and their order are the same, "
                "sums round differently, and random states (dropout) start from the seed",
                self._accelerator.num_processes,
                len(per_process),
            )

    def _same_processes(self, per_process: list[dict[str, Any]]) -> bool:
        return len(per_process) == self._accelerator.num_processes


def write_checkpoint(everything: dict[str, Any], file: Path) -> None:
    """Write a checkpoint and its sha256, or neither."""
    file.parent.mkdir(exist_ok=True)
    try:
        with atomic_file(file) as draft:
            torch.save(everything, draft)
            atomic_write(sha256_file(file), f"{sha256(draft)}  {file.name}\n")
    except (OSError, RuntimeError):
        sha256_file(file).unlink(missing_ok=True)
        raise


def last_undamaged(folder: Path) -> Path | None:
    """Return the last undamaged checkpoint; rename damaged ones, so that they do not count."""
    for file in sorted(folder.glob("step_*.pt"), reverse=True):
        if (damage := find_damage(file)) is None:
            return file
        log.warning("%s is damaged (%s); trying the checkpoint before it", file, damage)
        file.replace(file.with_suffix(".damaged"))
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Compare a checkpoint with its sha256; return the difference, or None."""
    try:
        expected = sha256_file(checkpoint).read_text().split()[0]
        found = sha256(checkpoint)
    except (OSError, IndexError, UnicodeDecodeError) as error:
        return f"cannot read its sha256: {type(error).__name__}"
    return None if found == expected else f"sha256 {found[:8]}, expected {expected[:8]}"


def sha256_file(checkpoint: Path) -> Path:
    """Return the file with the sha256, in the format of sha256sum."""
    return checkpoint.with_suffix(".pt.sha256")


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
