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
    """Print the decisions as a table; write the survey to each student's folder.

    A resumed run reads the survey of its start. Call it on the main process.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    if students[0].decisions:
        table = decision_table(students[0].decisions)
        log.info("settings, and the reason of each:\n%s", table)
    for d in students:
        _write_survey(d)


def save_decisions(d: Distillation) -> None:
    """Write the decisions to the run's folder; call it on the main process.

    A run that cannot be resumed has failed before, so that the reasons of its start stay.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    if d.decisions:
        with d.folder.writing(d.folder.path / DECISIONS):
            write_decisions(d.folder.path, d.decisions)


def _write_survey(d: Distillation) -> None:
    folder = d.folder.path
    if d.survey is None:
        d.survey = read_survey(folder)
    else:
        with d.folder.writing(folder / SURVEY):
            write_survey(folder, d.survey)
