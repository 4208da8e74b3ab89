"""Write ``report.html`` and ``report.md`` into the folder of a finished distillation."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from pcd_hub.errors import first_line
from pcd_hub.report.page.run_folder import Notes, write_notes
from pcd_hub.report.page.write import REPORT, write_report

__all__ = ["REPORT", "save_report"]

log = logging.getLogger("pcd_hub")


def save_report(folder: Path, notes: Notes, *, warnings: Sequence[str]) -> Path | None:
    """Write the report from the files of the run; call it on the main process.

    A failure is only logged: the weight is already exported.

    Args:
        folder: The run's folder, with its record and export.
        notes: Descriptions of the pictures.
        warnings: The warnings of the run.

    Returns:
        The page; None if it could not be written.
    """
    try:
        write_notes(folder, dataclasses.replace(notes, warnings=tuple(warnings)))
        return write_report(folder)
    except Exception as error:  # the weight is complete: no report may lose the run
        log.warning(
            "the report could not be written (%s: %s); `pcd-hub report %s` writes it again",
            *(type(error).__name__, first_line(error), folder),
        )
        return None
