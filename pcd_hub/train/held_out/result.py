"""What a finished run states about its held-out images: log, record and results table."""

import dataclasses
import logging
from typing import Any

from pcd_hub.train.held_out.held_out import HeldOut
from pcd_hub.weights.record import Measurement

log = logging.getLogger("pcd_hub")

SUBJECT = "distilled student"


def log_verdict(held_out: HeldOut) -> None:
    """Log the comparison with the start, as a warning if the student is worse."""
    found = held_out.compare()
    sentence = found.sentence[:1].upper() + found.sentence[1:]
    if found.outcome == "worse":
        log.warning(
            "WARNING: %s. Do not use this weight; lower --optim.lr-per-256, train longer, or "
            "choose another teacher",
            sentence,
        )
    else:
        log.info("%s", sentence)


def describe_held_out(held_out: HeldOut) -> dict[str, Any]:
    """Describe the scores for the weight's record: at the start, the best and the last step."""
    exported = held_out.exported
    return {
        "images": held_out.num_images,
        "exported_step": exported.step if exported else None,
        "best_step": held_out.best_step,
        "last_step": held_out.history[-1]["step"] if held_out.history else None,
        "planned_steps": held_out.end.planned_steps,
        "stopped_early": held_out.stopped_early,
        "start": held_out.start,
        "best": held_out.best,
        "last": held_out.last,
        "outcome": held_out.compare().outcome,
        "verdict": held_out.verdict(),
    }


def held_out_measurement(
    held_out: HeldOut, *, teacher: str, image_size: object, command: str
) -> dict[str, Any]:
    """Return start and student as an entry of the record's measurements; empty without scores.

    Args:
        held_out: The scores.
        teacher: Name of the teacher.
        image_size: Size of the crops, for the protocol.
        command: The command that repeats the run.
    """
    student = held_out.exported
    if student is None or not held_out.start:
        return {}
    table = Measurement(
        task="agreement with the teacher",
        dataset="held-out images of the training set",
        metric="teacher's nearest pixel in top-1",
        unit="%",
        images=held_out.num_images,
        seeds=1,
        protocol=f"images never trained on, centre crops of {image_size} px; share of the pixels "
        "of the last feature map whose most similar pixel of another image (cosine) is the one "
        f"that {teacher} finds most similar",
        command=command,
        subject=SUBJECT,
        means={
            held_out.start_name: round(held_out.start["retrieval"], 2),
            SUBJECT: round(student.means()["retrieval"], 2),
        },
    )
    return {"held_out": dataclasses.asdict(table)}
