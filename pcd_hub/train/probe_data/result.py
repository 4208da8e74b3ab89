"""What a finished run states about its labelled images: record and log."""

import dataclasses
import logging
from typing import Any

from pcd_hub.errors import StudentError
from pcd_hub.evaluate.segmentation_probe import PROTOCOL_VERSION
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.probe_data.scores import ProbeScores
from pcd_hub.train.results.compared import SUBJECT, compared_models
from pcd_hub.weights.record import Measurement

log = logging.getLogger("pcd_hub")


def probe_measurement(d: Distillation, scores: ProbeScores, *, command: str) -> dict[str, Any]:
    """Return start, student and teacher as an entry of the record's measurements.

    The start and the student were measured during the run, unless the run was resumed with other
    labelled images, or an earlier step is exported. Call it on the main process.

    Args:
        d: The trained distillation, whose student has the exported weights.
        scores: Its scores.
        command: The command that repeats the run.
    """
    probe = scores.probe
    known = {d.start_label: scores.start, SUBJECT: scores.after(d.exported_step)}
    means: dict[str, float] = {}
    for model in compared_models(d):
        try:
            mean = known.get(model.name)
            means[model.name] = scores.score(model)["mean_iou"] if mean is None else mean
        except StudentError as error:  # a teacher that takes one size of images only
            log.info("no mean IoU of the %s on the labelled images: %s", model.name, error)
    log.info(
        "mean IoU on %d labelled images: %s",
        len(probe.test),
        ", ".join(f"{name} {mean:.1f} %" for name, mean in means.items()),
    )
    table = Measurement(
        task="linear segmentation probe",
        dataset=probe.test.name,
        metric="mean IoU",
        unit="%",
        images=len(probe.test),
        seeds=1,
        protocol=probe.protocol,
        protocol_version=PROTOCOL_VERSION,
        command=command,
        subject=SUBJECT,
        means={name: round(mean, 2) for name, mean in means.items()},
    )
    return {"probe_data": dataclasses.asdict(table)}
