"""What a finished run states about its held-out images: log, record and results table."""

import dataclasses
import logging
from typing import Any

from pcd_hub.train.held_out.held_out import HeldOut
from pcd_hub.train.monitors.verdict import SHORT_STEPS
from pcd_hub.train.results.compared import SUBJECT
from pcd_hub.weights.record import Measurement

log = logging.getLogger("pcd_hub")

PROTOCOL_VERSION = 1
"""Raise it with every change that may change scores under the same protocol sentence."""


def warn_if_worse(held_out: HeldOut) -> None:
    """Log a warning if the student agrees worse with the teacher than its start."""
    if held_out.compare().outcome == "worse":
        log.warning(
            "WARNING: the student is worse than its start. Do not use this weight; %s, or choose "
            "another teacher",
            "train longer"
            if held_out.end.planned_steps < SHORT_STEPS
            else "lower --optim.lr-per-256, train longer",
        )


def held_out_measurements(
    held_out: HeldOut, *, teacher: str, image_size: object, command: str
) -> dict[str, Any]:
    """Return start and student as entries of the record's measurements; empty without scores.

    Args:
        held_out: The scores.
        teacher: Name of the teacher.
        image_size: Size of the crops, for the protocol.
        command: The command that repeats the run.
    """
    student = held_out.exported
    if student is None or not held_out.start:
        return {}
    start, end = held_out.start, student.means()
    metrics = {"CKA with the teacher": "cka", "teacher's nearest pixel in top-1": "retrieval"}
    tables = [
        Measurement(
            task="agreement with the teacher",
            dataset="held-out images of the training set",
            metric=metric,
            unit="%",
            images=held_out.num_images,
            seeds=1,
            protocol=f"images never trained on, centre crops of {image_size} px; pixels of the "
            f"last feature map against those of {teacher}: linear CKA of unit vectors, pixel by "
            "pixel; share of the pixels whose most similar pixel (cosine) is the teacher's; only "
            "pixels of other images are compared",
            protocol_version=PROTOCOL_VERSION,
            command=command,
            subject=SUBJECT,
            means={
                held_out.start_name: round(start[name], 2),
                SUBJECT: round(end[name], 2),
            },
        )
        for metric, name in metrics.items()
    ]
    names = ("held_out", "held_out_retrieval")
    return dict(zip(names, map(dataclasses.asdict, tables), strict=True))
