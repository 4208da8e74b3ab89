"""Derived settings as a table for a person, and as a file of the run's folder."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcd_hub.files.write import atomic_write
from pcd_hub.train.own_images.situation import Decision
from pcd_hub.train.run_folder.resume import option

FILE = "decisions.json"


def decision_table(decisions: Sequence[Decision]) -> str:
    """Return one line per setting: option, value and reason."""
    rows = [(option(one.option), _typed(one.value), one.reason) for one in decisions]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
    return "\n".join(
        f"  {name:{widths[0]}}  {value:{widths[1]}}  {reason}" for name, value, reason in rows
    )


def _typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def write_decisions(folder: Path, decisions: Sequence[Decision]) -> None:
    """Write the decisions to a run's folder.

    Raises:
        OSError: If it cannot be written.
    """
    found = [dataclasses.asdict(decision) for decision in decisions]
    atomic_write(folder / FILE, json.dumps(found, indent=2) + "\n")


def read_decisions(folder: Path) -> tuple[Decision, ...]:
    """Read the decisions of a run; none if it made none or the file is damaged."""
    try:
        found = json.loads((folder / FILE).read_text())
        return tuple(Decision(**{**one, "value": _as_tuple(one["value"])}) for one in found)
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
