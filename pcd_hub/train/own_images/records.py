"""Print and record how a run's settings were found."""

import logging
from collections.abc import Sequence

from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.own_images.decisions import FILE as DECISIONS
from pcd_hub.train.own_images.decisions import decision_table, write_decisions
from pcd_hub.train.own_images.surveyed import FILE as SURVEY
from pcd_hub.train.own_images.surveyed import read_survey, write_survey

log = logging.getLogger("pcd_hub")


def record_decisions(students: Sequence[Distillation]) -> None:
    """Print the decisions as a table; write them and the survey to each student's folder.

    A resumed run reads the survey of its start. Call it on the main process.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    if students[0].decisions:
        table = decision_table(students[0].decisions)
        log.info("settings, and the reason of each:\n%s", table)
    for d in students:
        _write(d)


def _write(d: Distillation) -> None:
    folder = d.folder.path
    if d.decisions:
        with d.folder.writing(folder / DECISIONS):
            write_decisions(folder, d.decisions)
    if d.survey is None:
        d.survey = read_survey(folder)
    else:
        with d.folder.writing(folder / SURVEY):
            write_survey(folder, d.survey)
