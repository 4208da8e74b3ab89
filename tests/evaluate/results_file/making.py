"""Lines of a results file."""

import dataclasses
from typing import Any

from pcd_hub.evaluate.results import ModelScores
from pcd_hub.evaluate.results_file.line import ResultLine, result_line
from tests.evaluate.tables import table

PROVENANCE = {
    "created": "2026-01-01T00:00:00+00:00",
    "code": {"pcd_hub": "0.1.0", "commit": "c" * 40, "dirty": False},
    "versions": {"python": "3.12.1", "torch": "2.6.0"},
}


def line(model: str = "net.pcd", sha256: str | None = None, **changed: Any) -> ResultLine:
    """A line with the scores of "net.pcd" in the small table; ``changed`` goes into the table."""
    own = table(data_sha256="d" * 64, details=PROVENANCE, **changed)
    scores = ModelScores(name=model, metrics=table().scores["net.pcd"], architecture="net")
    return result_line(own, scores, sha256)


def rescored(one: ResultLine, value: float) -> ResultLine:
    """The line with another mean IoU, the same at every seed."""
    iou = dataclasses.replace(one.metrics["mean IoU"], mean=value, std=0.0, values=(value, value))
    return dataclasses.replace(one, metrics={**one.metrics, "mean IoU": iou})
