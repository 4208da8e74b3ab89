"""Mean IoU of a linear probe of the student on labelled images, as a run goes.

    scores.measure_start(step)   # before the first step
    scores.measure(step + 1)     # after each step, before its checkpoint

The main process measures and the others wait; every process has the same history.
"""

import logging
from typing import Any, NamedTuple, cast

from accelerate import Accelerator

from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.segmentation_probe import SegmentationProbe
from pcd_hub.train.held_out.history import History
from pcd_hub.train.held_out.unchanged import unchanged
from pcd_hub.train.launch import from_main_process

log = logging.getLogger("pcd_hub")


class LabelledImages(NamedTuple):
    """The labelled images of a run."""

    probe: SegmentationProbe | None
    """The probe with the images; None on other processes than the main one."""
    num_images: int
    """Number of training and test images."""
    sha256: str
    """Hash of the images, masks and classes."""


class ProbeScores:
    """Scores of the student on the labelled images of a run.

    Args:
        accelerator: The run's Accelerator.
        history: When the student is measured, and its scores.
        student: The student, which is trained.
        labelled: The images.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        history: History,
        student: EvaluatedModel,
        labelled: LabelledImages,
    ) -> None:
        self._accelerator = accelerator
        self._history = history
        self._student = student
        self._labelled = labelled

    @property
    def probe(self) -> SegmentationProbe:
        """The probe with the images, on the main process."""
        assert self._labelled.probe is not None, "only the main process has the images"
        return self._labelled.probe

    @property
    def start(self) -> float | None:
        """Mean IoU in % before the first step; None if it is not known."""
        return self.after(0)

    def after(self, step: int) -> float | None:
        """Return the mean IoU in % after ``step`` steps; None if it was not measured."""
        return next(
            (line["mean_iou"] for line in self._history.lines if line["step"] == step), None
        )

    def measure_start(self, step: int) -> None:
        """Measure the student before the first step; call it on every process."""
        if step == 0:
            self._measure(0)

    def measure(self, done: int) -> None:
        """Measure if it is due after ``done`` steps; call it on every process.

        Raises:
            CheckpointError: If the scores cannot be written.
        """
        if self._history.is_due(done):
            self._measure(done)

    def score(self, model: EvaluatedModel) -> dict[str, float]:
        """Return mean IoU and pixel accuracy of a model in %, on the main process.

        Raises:
            StudentError: If it cannot compute its features for images of this size.
        """
        with unchanged(model.model, self._accelerator.device):
            result = self.probe.probe(self.probe.features(model))
        return {"mean_iou": 100 * result.mean_iou, "pixel_accuracy": 100 * result.pixel_accuracy}

    def _measure(self, done: int) -> None:
        found = self.score(self._student) if self._accelerator.is_main_process else None
        scores = cast("dict[str, float]", from_main_process(self._accelerator, found))
        start = "" if self.start is None else f" (start {self.start:.1f} %)"
        self._history.add(done, scores)
        if self._accelerator.is_main_process:
            log.info(
                "step %d of %d: %s has a mean IoU of %.1f %%%s on %d labelled images",
                *(done, self._history.end.total_steps, self._student.name),
                *(scores["mean_iou"], start, len(self.probe.test)),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"images": self._labelled.sha256, "history": self._history.lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint, and rewind the history in the folder to it."""
        if state["images"] != self._labelled.sha256:
            log.warning("the labelled images have changed; their earlier scores do not count")
            self._history.replace([])
            return
        self._history.replace(state["history"])
