"""Read the files of a finished run for its report; bounded, as the folder may come from others."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pcd_hub.data.survey.result import Survey
from pcd_hub.errors import ConfigError, PCDHubError, first_line
from pcd_hub.files.read import read_bounded
from pcd_hub.files.strict_json import parse_json
from pcd_hub.files.write import atomic_write
from pcd_hub.report.run_report import Setting, Sheet
from pcd_hub.weights.layout import MANIFEST_FILE
from pcd_hub.weights.record import WeightRecord

NOTES = "report.json"
RECORD, CONFIG = "record.json", "config.json"
SCORES = ("held_out", "probe_data")
"""Names of the files with scores that were measured now and then during the run."""

_MAX_BYTES = 2**22
_MAX_METRICS_BYTES = 2**27
"""Metrics of about 500,000 logged steps."""

_LARGEST = 1e300

Line = dict[str, float]
"""The numbers of one logged step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notes:
    """Facts for the report that no other file of the run holds: ``report.json``."""

    warnings: tuple[str, ...] = ()
    """Warnings of the run."""
    features: Sheet | None = None
    """Images, then the feature maps of each model as colours."""
    receptive_field: Sheet | None = None
    """Effective receptive fields, one column per model."""
    receptive_sides: tuple[float, ...] = ()
    """For each of them, the side of the square with half of it, as a share of the image's side."""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Notes":
        """Return the notes that ``dataclasses.asdict`` gave; what is damaged is left out."""
        sides = raw.get("receptive_sides")
        numbers = [_finite(side) for side in sides] if isinstance(sides, list) else []
        warnings = raw.get("warnings")
        return cls(
            warnings=tuple(map(str, warnings)) if isinstance(warnings, list) else (),
            features=Sheet.from_json(raw.get("features")),
            receptive_field=Sheet.from_json(raw.get("receptive_field")),
            receptive_sides=tuple(side for side in numbers if side is not None),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of a finished run."""

    folder: Path
    record: WeightRecord
    metrics: Sequence[Line]
    """Lines of ``metrics.jsonl``."""
    scores: Mapping[str, Sequence[Line]]
    """Lines of ``held_out.jsonl`` and ``probe_data.jsonl`` by name; empty without such images."""
    decisions: Sequence[Setting]
    survey: Survey | None
    notes: Notes
    damaged: Sequence[str]
    """Files that cannot be read, each with the reason."""


def write_notes(folder: Path, notes: Notes) -> None:
    """Write ``report.json``.

    Raises:
        OSError: If it cannot be written.
    """
    atomic_write(folder / NOTES, json.dumps(dataclasses.asdict(notes), indent=2) + "\n")


def read_run(folder: Path) -> RunFiles:
    """Read a finished run.

    Raises:
        ConfigError: If the folder holds no finished distillation.
    """
    _check_finished(folder)
    record = _read_record(folder / RECORD)
    damaged: list[str] = []

    def read(name: str, parse: Callable[[Any], Any], otherwise: Any) -> Any:
        try:
            return parse(_json(folder / name)) if (folder / name).exists() else otherwise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            damaged.append(f"{name} cannot be read: {first_line(error)}")
            return otherwise

    return RunFiles(
        folder=folder,
        record=record,
        metrics=_read_lines(folder / "metrics.jsonl", damaged),
        scores={name: _read_lines(folder / f"{name}.jsonl", damaged) for name in SCORES},
        decisions=read("decisions.json", _settings, ()),
        survey=read("survey.json", Survey.from_json, None),
        notes=read(NOTES, Notes.from_json, Notes()),
        damaged=damaged,
    )


def _check_finished(folder: Path) -> None:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "missing"
        raise ConfigError(f"{folder} is {found}; expected the folder of a finished run")
    if (folder / RECORD).is_file():
        return
    if (folder / MANIFEST_FILE).is_file():
        raise ConfigError(
            f"{folder} is an exported weight, not a run; expected the folder that holds it "
            f"({folder.parent})"
        )
    if inside := sorted(path.parent for path in folder.glob(f"*/{RECORD}")):
        names = " ".join(map(str, inside[:3])) + (" ..." if len(inside) > 3 else "")
        raise ConfigError(f"{folder} holds {len(inside)} runs; name them: {names}")
    if (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} is not finished: it has no {RECORD}; `pcd-hub distill --resume {folder}` "
            "continues the run, and writes the report at its end"
        )
    raise ConfigError(
        f"{folder} has no {RECORD}; expected the folder of a finished run of pcd-hub distill"
    )


def _read_record(file: Path) -> WeightRecord:
    try:
        raw = _json(file)
        if not isinstance(raw, dict):
            raise ConfigError("it is not an object")
        return WeightRecord.from_dict(raw)
    except (OSError, PCDHubError, ValueError) as error:
        raise ConfigError(
            f"{file} is not the record of a finished distillation: {first_line(error)}; name "
            "another run, or restore the file"
        ) from error


def _json(file: Path) -> Any:
    return parse_json(read_bounded(file, _MAX_BYTES), what=file.name, max_bytes=_MAX_BYTES)


def _settings(raw: list[dict[str, Any]]) -> tuple[Setting, ...]:
    return tuple(
        Setting(option=str(one["option"]), value=one["value"], reason=str(one["reason"]))
        for one in raw
    )


def _read_lines(file: Path, damaged: list[str]) -> list[Line]:
    """Read a file of one JSON object per line; of each, only the finite numbers."""
    if not file.exists():
        return []
    try:
        lines = read_bounded(file, _MAX_METRICS_BYTES).decode(errors="replace").splitlines()
    except (OSError, ValueError) as error:
        damaged.append(f"{file.name} cannot be read: {first_line(error)}")
        return []
    read = [numbers for line in lines if "step" in (numbers := _numbers(line))]
    if len(read) < len(lines):
        damaged.append(f"{len(lines) - len(read)} of {len(lines)} lines of {file.name} are damaged")
    return read


def _numbers(line: str) -> Line:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(raw, dict):
        return {}
    found = {key: _finite(value) for key, value in raw.items()}
    return {key: value for key, value in found.items() if value is not None}


def _finite(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= _LARGEST else None  # not inf, not NaN
