"""How a run's settings were found: printed, ``decisions.json`` and ``survey.json``."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcd_hub.data.survey.result import Survey
from pcd_hub.files.write import atomic_write
from pcd_hub.report.run_report import Setting
from pcd_hub.train.configs.fields import as_typed
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.run_folder.resume import option

log = logging.getLogger("pcd_hub")

DECISIONS, SURVEY = "decisions.json", "survey.json"


def record_decisions(students: Sequence[Distillation]) -> None:
    """Print the decisions as a table; write the survey to each student's folder.

    A resumed run reads the survey of its start. Call it on the main process.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    if decisions := students[0].decisions:
        log.info("settings, and the reason of each:\n%s", decision_table(decisions))
    for d in students:
        if d.survey is None:
            d.survey = _read_survey(d.folder.path)
        else:
            _write(d, SURVEY, d.survey.as_json())


def save_decisions(d: Distillation) -> None:
    """Write the decisions to the run's folder; call it on the main process.

    A run that cannot be resumed has failed before, so that the reasons of its start stay.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    if d.decisions:
        _write(d, DECISIONS, [dataclasses.asdict(one) for one in d.decisions])


def _write(d: Distillation, name: str, value: Any) -> None:
    file = d.folder.path / name
    with d.folder.writing(file):
        atomic_write(file, json.dumps(value, indent=2) + "\n")


def decision_table(decisions: Sequence[Setting]) -> str:
    """Return one line per setting: option, value and reason."""
    rows = [(option(one.option), as_typed(one.value), one.reason) for one in decisions]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
    return "\n".join(
        f"  {name:{widths[0]}}  {value:{widths[1]}}  {reason}" for name, value, reason in rows
    )


def read_decisions(folder: Path) -> tuple[Setting, ...]:
    """Read the decisions of a run; none if it made none or the file is damaged."""
    try:
        found = json.loads((folder / DECISIONS).read_text())
        values = [tuple(v) if isinstance(v := one["value"], list) else v for one in found]
        return tuple(Setting(**one | {"value": v}) for one, v in zip(found, values, strict=True))
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def _read_survey(folder: Path) -> Survey | None:
    """Read the survey of a run; None if it made none or the file is damaged."""
    try:
        return Survey.from_json(json.loads((folder / SURVEY).read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
