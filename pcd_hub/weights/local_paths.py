"""Shorten the paths of this machine in a record that is shared."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from pcd_hub.weights.record import Measurement, WeightRecord

_ROOT = r"(?:/(?!/)|~/|[A-Za-z]:[\\/]|\\\\)"
_INSIDE = r"[^\s:,;'\"()\[\]]"
_PATH = re.compile(
    r"(?P<before>^|[\s:=,;'\"(\[]|file://)"  # not within a word or after the :/ of a URL
    rf"{_ROOT}(?P<path>{_INSIDE}+)"
)
_WHOLE = re.compile(rf"(?P<before>(?:[\w.-]{{2,}}[:=])*(?://)?)(?P<path>{_ROOT}.*)", re.DOTALL)
"""A text that is a path, after a scheme or the name of an option."""
_QUOTED = re.compile(r"(?P<quote>['\"])(?P<inside>.*?)(?P=quote)")
_PARTS = ("recipe", "config", "teacher", "data", "start")


def without_local_paths(record: WeightRecord) -> WeightRecord:
    """Return the record with only the last part of every absolute path.

    URLs, names on the Hub and relative paths stay.

    Raises:
        WeightError: If a measurement is invalid.
    """
    parts = {name: getattr(record, name) for name in _PARTS}
    known = tuple(sorted(set(_paths(list(parts.values()))), key=len, reverse=True))
    tables = {
        name: record.metrics[name] | asdict(_renamed(table, known))  # with a newer version's fields
        for name, table in record.measurements().items()
    }
    parts = {name: _shortened(value, known) for name, value in parts.items()}
    return replace(record, **parts, metrics=tables)


def shortened(text: str, known: Sequence[str] = ()) -> str:
    """Return ``text`` with only the last part of every absolute path.

    ``local-dir:/data/teachers/dino`` becomes ``local-dir:dino``. A text that is one path may
    contain spaces and commas; within other text, a path with spaces is found if it is quoted or
    known.

    Args:
        text: A path, a command or a sentence.
        known: Paths of the same record, the longest first.
    """
    if whole := _WHOLE.fullmatch(text):
        return whole["before"] + _last(whole["path"])
    for path in known:
        pattern = rf"(?<!{_INSIDE}){re.escape(path)}(?!{_INSIDE})"  # not a part of another path
        text = re.sub(pattern, lambda _, path=path: _last(path), text)
    text = _QUOTED.sub(lambda m: m["quote"] + shortened(m["inside"]) + m["quote"], text)
    return _PATH.sub(lambda m: m["before"] + _last(m["path"]), text)


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _paths(value: Any) -> Iterator[str]:
    """Yield the texts that are one path, without their scheme."""
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value)
        if whole and _last(whole["path"]):
            yield whole["path"]
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _paths(item)


def _shortened(value: Any, known: Sequence[str]) -> Any:
    if isinstance(value, str):
        return shortened(value, known)
    if isinstance(value, list | tuple):
        return [_shortened(item, known) for item in value]
    if isinstance(value, dict):
        return {key: _shortened(item, known) for key, item in value.items()}
    return value


def _renamed(table: Measurement, known: Sequence[str]) -> Measurement:
    """Shorten the names of the models; those that would be equal are numbered."""
    names: dict[str, str] = {}
    for model in table.means:
        short = shortened(model, known)
        taken = sum(shortened(other, known) == short for other in names)
        names[model] = f"{short} ({taken + 1})" if taken else short
    return replace(
        table,
        subject=names[table.subject],
        dataset=shortened(table.dataset, known),
        command=shortened(table.command, known),
        protocol=shortened(table.protocol, known),
        means={names[model]: mean for model, mean in table.means.items()},
        stds={names[model]: std for model, std in table.stds.items()},
    )
