"""Scores on held-out images during a run: history, early end, best checkpoint, verdict.

    held_out.measure(step)   # before the first step, and after each step, before its checkpoint

Every process holds the same scores, so that all decide the same; only the main process computes
them and writes files.
"""

import dataclasses
import logging
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pcd_hub.train.held_out.history import History
from pcd_hub.train.held_out.plateau import EarlyEnd, plateau
from pcd_hub.train.held_out.scorer import Scorer
from pcd_hub.train.held_out.scores import (
    Scores,
    Verdict,
    compare_with_start,
    paired_difference,
)
from pcd_hub.train.launch import from_main_process
from pcd_hub.train.run_folder.checkpoints import find_damage, write_checkpoint
from pcd_hub.train.run_folder.folder import RunFolder

log = logging.getLogger("pcd_hub")

BEST = "best.pt"


@dataclasses.dataclass(kw_only=True)
class _State:
    """What a checkpoint holds."""

    images: str
    """Hash of the held-out images; scores of other images cannot be compared."""
    plateau_from: int = 0
    """First step whose scores count for the plateau."""
    start: Scores | None = None
    best: Scores | None = None
    last: Scores | None = None


@dataclasses.dataclass(kw_only=True, eq=False)
class HeldOut:
    """Scores of the student on the held-out images of a run."""

    accelerator: Accelerator
    folder: RunFolder
    scored: History
    """When the student is measured, and the mean scores."""
    student: nn.Module
    """The model whose weights are kept when they score best."""
    scorer: Scorer
    images: str
    """Hash of the held-out images; scores of other images cannot be compared."""
    num_images: int
    warmup_steps: int
    """Steps of warm-up, whose scores do not count for the plateau."""
    stop_on_plateau: bool
    """Whether a plateau ends the run early."""
    start_name: str = "random weights"
    """Name of the start in the verdict."""
    exported: Scores | None = None
    """Scores of the weight that is exported; None before :meth:`choose`."""

    def __post_init__(self) -> None:
        self._state = _State(images=self.images, plateau_from=self.warmup_steps)

    @property
    def start(self) -> dict[str, float]:
        """Mean scores of the student before training; empty if they are not known."""
        return _means(self._state.start)

    @property
    def history(self) -> list[dict[str, float]]:
        """Step and mean scores of every measurement, the start first."""
        return self.scored.lines

    @property
    def end(self) -> EarlyEnd:
        """Length of the run."""
        return self.scored.end

    def measure(self, done: int) -> None:
        """Measure if it is due after ``done`` steps; call it on every process.

        Raises:
            CheckpointError: If the scores or the best weights cannot be written.
        """
        if self.scored.is_due(done):
            self._measure(done)
            if self.stop_on_plateau:
                self._check_plateau(done)

    def _measure(self, done: int) -> None:
        scores = self.scorer.score(done) if self.accelerator.is_main_process else None
        scores = from_main_process(self.accelerator, scores)
        if isinstance(scores, Scores):
            self._add(scores)

    def _add(self, scores: Scores) -> None:
        state, means = self._state, scores.means()
        if scores.step == 0:
            state.start = scores
        elif state.best is None or means["loss"] < state.best.means()["loss"]:
            state.best = scores
            self._save_best(scores.step)
        state.last = scores
        self.scored.add(scores.step, means)

    def _save_best(self, step: int) -> None:
        if self.accelerator.is_main_process:
            file = self.folder.checkpoints / BEST
            with self.folder.writing(file):
                write_checkpoint({"step": step, "student": self.student.state_dict()}, file)

    def _check_plateau(self, done: int) -> None:
        counted = [e["loss"] for e in self.history if e["step"] >= self._state.plateau_from]
        if plateau(counted) and self.end.begin(done):
            log.info(
                "the held-out loss no longer improves: the learning rate decays to 0, and the run "
                "ends after %d steps instead of %d",
                *(self.end.total_steps, self.end.planned_steps),
            )

    def choose(self) -> Scores | None:
        """Load the best weights into the student if they beat the last ones by more than noise.

        Call it on the main process, after training.

        Returns:
            The scores of the weights that the student has then.
        """
        last, best = self._state.last, self._state.best
        self.exported = last
        if last is None or best is None or best.step == last.step:
            return last
        difference = paired_difference(last.loss, best.loss)
        if difference.is_noise or difference.mean < 0:
            return last
        weights = self._best_weights(best.step)
        if weights is None:
            return last
        self.student.load_state_dict(weights)
        log.info(
            "the weight is that of step %d, whose held-out loss is lower than that of the last "
            "step %d by %.4f ± %.4f",
            *(best.step, last.step, *difference),
        )
        self.exported = best
        return best

    def _saved_best(self) -> int | None:
        """Return the step of the saved weights; None if there are none, or they are damaged."""
        file = self.folder.checkpoints / BEST
        if not file.exists() or find_damage(file):
            return None
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)["step"]

    def _best_weights(self, step: int) -> dict[str, Any] | None:
        file = self.folder.checkpoints / BEST
        if damage := find_damage(file):
            log.warning("%s is damaged (%s); the weight is that of the last step", file, damage)
            return None
        saved = torch.load(file, map_location="cpu", weights_only=True)
        return saved["student"] if saved["step"] == step else None

    def compare(self) -> Verdict:
        """Compare the exported student with its start, image by image."""
        student = self.exported or self._state.last
        if self._state.start is None or student is None:
            return Verdict("within noise", "the student was not compared with its start")
        return compare_with_start(self._state.start, student, start_name=self.start_name)

    def describe(self) -> dict[str, Any]:
        """Describe the scores for the weight's record: at the start, the best and the last step."""
        exported, best, verdict = self.exported, self._state.best, self.compare()
        return {
            "images": self.num_images,
            "every_steps": self.scored.every_steps,
            "exported_step": exported.step if exported else None,
            "best_step": best.step if best else 0,
            "last_step": self.history[-1]["step"] if self.history else None,
            "planned_steps": self.end.planned_steps,
            "stopped_early": self.end.decay_from is not None,
            "start": self.start,
            "best": _means(best),
            "last": _means(self._state.last),
            "outcome": verdict.outcome,
            "verdict": verdict.sentence,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        state = dataclasses.asdict(self._state)
        return {**state, "history": self.history, "end": self.end.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint, and rewind the history in the folder to it."""
        if self.stop_on_plateau:
            self.end.load_state_dict(state["end"])
        if state["images"] != self._state.images:
            log.warning("the held-out images have changed; their earlier scores do not count")
            self.scored.replace([])
            return
        scores = {
            name: Scores.from_dict(state[name]) if state[name] else None
            for name in ("start", "best", "last")
        }
        if scores["best"] is not None and self._saved_best() != scores["best"].step:
            scores["best"] = None  # written after the checkpoint: the next measurements find it
        history, planned = state["history"], state["end"]["planned_steps"]
        extended = planned != self.end.planned_steps and history
        self._state = _State(
            images=state["images"],
            plateau_from=history[-1]["step"] if extended else state["plateau_from"],
            **scores,
        )
        self.scored.replace(history)


def _means(scores: Scores | None) -> dict[str, float]:
    return {} if scores is None else scores.means()
