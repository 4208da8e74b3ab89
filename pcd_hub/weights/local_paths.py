"""Shorten the paths of this machine in a record that is shared."""

import re
from dataclasses import asdict, replace
from typing import Any

from pcd_hub.weights.record import Measurement, WeightRecord

_PATH = re.compile(
    r"(?P<before>^|[\s:=,;'\"(\[]|file://)"  # not within a word or after the :/ of a URL
    r"(?:/(?!/)|~/|[A-Za-z]:[\\/])"
    r"(?P<path>[^\s:,;'\"()\[\]]+)"
)


_PARTS = ("recipe", "config", "teacher", "data", "start")


def without_local_paths(record: WeightRecord) -> WeightRecord:
    """Return the record with only the last part of every absolute path.

    URLs, names on the Hub and relative paths stay.

    Raises:
        WeightError: If a measurement is invalid.
    """
    tables = {
        name: record.metrics[name] | asdict(_renamed(table))  # with fields of a newer version
        for name, table in record.measurements().items()
    }
    parts = {name: _shortened(getattr(record, name)) for name in _PARTS}
    return replace(record, **parts, metrics=tables)


def shortened(text: str) -> str:
    """Return ``text`` with only the last part of every absolute path.

    ``local-dir:/data/teachers/dino`` becomes ``local-dir:dino``.
    """
    return _PATH.sub(lambda m: m["before"] + re.split(r"[\\/]", m["path"].rstrip("\\/"))[-1], text)


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value]
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    return value


def _renamed(table: Measurement) -> Measurement:
    """Shorten the names of the models; those that would be equal are numbered."""
    names: dict[str, str] = {}
    for model in table.means:
        short = shortened(model)
        taken = sum(shortened(other) == short for other in names)
        names[model] = f"{short} ({taken + 1})" if taken else short
    return replace(
        table,
        subject=names[table.subject],
        dataset=shortened(table.dataset),
        command=shortened(table.command),
        protocol=shortened(table.protocol),
        means={names[model]: mean for model, mean in table.means.items()},
        stds={names[model]: std for model, std in table.stds.items()},
    )
