"""Scores that are measured now and then during a run: when, their file, and the trackers."""

import json
from collections.abc import Mapping, Sequence

from accelerate import Accelerator

from pcd_hub.files.write import atomic_write
from pcd_hub.train.held_out.plateau import EarlyEnd
from pcd_hub.train.monitors.trackers import for_each_tracker
from pcd_hub.train.run_folder.folder import RunFolder


class History:
    """Scores by step, in ``NAME.jsonl`` of the run's folder, and in its trackers as ``NAME_SCORE``.

    Every process has the same lines; the main process writes them.

    Args:
        accelerator: The run's Accelerator.
        folder: The run's folder.
        name: Name of the scores.
        every_steps: Steps between two measurements.
        end: Length of the run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: RunFolder,
        *,
        name: str,
        every_steps: int,
        end: EarlyEnd,
    ) -> None:
        self.lines: list[dict[str, float]] = []
        """Step and scores of every measurement, the oldest first."""
        self.every_steps = every_steps
        self.end = end
        self._accelerator = accelerator
        self._folder = folder
        self._name = name

    def is_due(self, done: int) -> bool:
        """Return True if the scores are measured after ``done`` steps."""
        return done % self.every_steps == 0 or done == self.end.total_steps

    def add(self, step: int, scores: Mapping[str, float]) -> None:
        """Add the scores after ``step`` steps.

        Raises:
            CheckpointError: If they cannot be written.
        """
        self.replace([*self.lines, {"step": step, **scores}])
        if self._accelerator.is_main_process:
            named = {f"{self._name}_{name}": value for name, value in scores.items()}
            at = max(0, step - 1)  # as metrics.jsonl counts
            for_each_tracker(self._accelerator, lambda tracker: tracker.log(named, step=at))

    def replace(self, lines: Sequence[dict[str, float]]) -> None:
        """Replace all lines, as those of a checkpoint when a run is resumed.

        Raises:
            CheckpointError: If they cannot be written.
        """
        self.lines = [*lines]
        if self._accelerator.is_main_process:
            file = self._folder.path / f"{self._name}.jsonl"
            with self._folder.writing(file):
                atomic_write(file, "".join(json.dumps(line) + "\n" for line in self.lines))
