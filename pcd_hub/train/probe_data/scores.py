"""Mean IoU of a linear probe of the student on labelled images, as a run goes.

    scores.measure(step)   # before the first step, and after each step, before its checkpoint

The main process measures and the others wait; every process has the same history.
"""

import logging
from dataclasses import dataclass
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


@dataclass(kw_only=True)
class ProbeScores:
    """Scores of the student on the labelled images of a run."""

    accelerator: Accelerator
    history: History
    """When the student is measured, and its scores."""
    student: EvaluatedModel
    labelled: LabelledImages

    @property
    def probe(self) -> SegmentationProbe:
        """The probe with the images, on the main process."""
        assert self.labelled.probe is not None, "only the main process has the images"
        return self.labelled.probe

    @property
    def start(self) -> float | None:
        """Mean IoU in % before the first step; None if it is not known."""
        return self.after(0)

    def after(self, step: int) -> float | None:
        """Return the mean IoU in % after ``step`` steps; None if it was not measured."""
        return next((line["mean_iou"] for line in self.history.lines if line["step"] == step), None)

    def measure(self, done: int) -> None:
        """Measure if it is due after ``done`` steps; call it on every process.

        Raises:
            CheckpointError: If the scores cannot be written.
        """
        if self.history.is_due(done):
            self._measure(done)

    def score(self, model: EvaluatedModel) -> dict[str, float]:
        """Return mean IoU and pixel accuracy of a model in %, on the main process.

        Raises:
            StudentError: If it cannot compute its features for images of this size.
        """
        with unchanged(model.model, self.accelerator.device):
            result = self.probe.probe(self.probe.features(model))
        return {"mean_iou": 100 * result.mean_iou, "pixel_accuracy": 100 * result.pixel_accuracy}

    def _measure(self, done: int) -> None:
        found = self.score(self.student) if self.accelerator.is_main_process else None
        scores = cast("dict[str, float]", from_main_process(self.accelerator, found))
        start = "" if self.start is None else f" (start {self.start:.1f} %)"
        self.history.add(done, scores)
        if self.accelerator.is_main_process:
            log.info(
                "step %d of %d: %s has a mean IoU of %.1f %%%s on %d labelled images",
                *(done, self.history.end.total_steps, self.student.name),
                *(scores["mean_iou"], start, len(self.probe.test)),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"images": self.labelled.sha256, "history": self.history.lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint, and rewind the history in the folder to it."""
        if state["images"] != self.labelled.sha256:
            log.warning("the labelled images have changed; their earlier scores do not count")
            self.history.replace([])
            return
        self.history.replace(state["history"])
