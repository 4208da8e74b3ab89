"""Log the verdict on a run early, and whenever it changes."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcd_hub.train.held_out.held_out import HeldOut
from pcd_hub.train.monitors.verdict import EARLY_SHARES, Verdict, judge

log = logging.getLogger("pcd_hub")

_EARLY_MEASUREMENTS = 20
"""Measurements in the first tenth of a run, if it logs fewer steps than that."""


_OF_THIS_PROCESS = ("new_keys", "target_cosine")
"""Metrics that a resumed run measures at other steps."""


class EarlyVerdict:
    """Verdict of a run in progress, on the main process.

    Args:
        metrics: ``metrics.jsonl`` of the run, which a resumed run continues.
        total_steps: Steps of the run.
        student: Name of the student in the log.
        teacher_faults: What makes the teacher's feature maps wrong.
    """

    def __init__(
        self,
        metrics: Path,
        *,
        total_steps: int,
        student: str = "student",
        teacher_faults: Sequence[str] = (),
    ) -> None:
        self.verdict: Verdict | None = None
        """The last one that was logged."""
        self.history: list[dict[str, Any]] = []
        """All that were logged: steps done, the verdict's fields, and whether it is bad."""
        self._metrics = metrics
        self._total_steps = total_steps
        self._student = student
        self._teacher_faults = teacher_faults
        self._lines: list[Mapping[str, float]] | None = None
        self._logged_share = 0.0

    def is_due(self, step: int) -> bool:
        """Return True if this step of the first tenth is measured though it is not logged."""
        early = max(1, int(EARLY_SHARES[-1] * self._total_steps))
        return step < early and step % max(1, early // _EARLY_MEASUREMENTS) == 0

    def add(
        self, step: int, metrics: Mapping[str, float], held_out: HeldOut | None = None
    ) -> dict[str, float]:
        """Add the measurements of a step, and log the verdict if it is time or it has changed.

        Args:
            step: Number of the step, from 0.
            metrics: Its metrics.
            held_out: Scores on the held-out images, which compare the student with its start.

        Returns:
            The metrics for metrics.jsonl: all but those that depend on where a resumed run starts,
            ``new_keys`` and ``target_cosine``.
        """
        if self._lines is None:
            self._lines = _read_before(self._metrics, step)
        self._lines.append({"step": step, **metrics})
        outcome = held_out.compare().outcome if held_out else ""
        verdict = judge(
            self._lines,
            total_steps=self._total_steps,
            held_out=outcome,
            teacher_faults=self._teacher_faults,
        )
        if verdict.kind == "too early" and self.verdict and self.verdict.is_bad:
            verdict = self.verdict  # only a sign of learning takes a fault back
        share = (step + 1) / self._total_steps
        due = [each for each in EARLY_SHARES if self._logged_share < each <= share]
        changed = self.verdict is None or verdict[::2] != self.verdict[::2]  # kind and cause
        if due or (changed and (verdict.is_bad or self._logged_share)):
            self._logged_share = max(share, EARLY_SHARES[0])
            self.verdict = verdict
            self.history.append({"step": step + 1, **verdict._asdict(), "is_bad": verdict.is_bad})
            log.log(
                logging.WARNING if verdict.is_bad else logging.INFO,
                "%sstep %d of %d, %s: %s",
                "warning: " if verdict.is_bad else "",
                *(step + 1, self._total_steps, self._student, verdict),
            )
        return {name: value for name, value in metrics.items() if name not in _OF_THIS_PROCESS}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"history": [*self.history], "logged_share": self._logged_share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint: what was logged before it."""
        self.history, self._logged_share = [*state["history"]], state["logged_share"]
        if self.history:
            last = self.history[-1]
            self.verdict = Verdict(**{name: last[name] for name in Verdict._fields})


def _read_before(file: Path, step: int) -> list[Mapping[str, float]]:
    if not file.exists():
        return []
    lines = map(json.loads, file.read_text().splitlines())
    return [line for line in lines if line["step"] < step]
