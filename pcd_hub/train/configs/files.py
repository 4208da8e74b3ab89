"""``--config FILE``: configurations in YAML or JSON files, and as plain containers.

A file may be written by hand or by a run: ``config.json`` of a run's folder, ``record.json``, or
the manifest of a weight. It holds all fields or only some.
"""

import dataclasses
import json
import logging
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from pcd_hub.data.sources.uris import local_path
from pcd_hub.errors import ConfigError, WeightError, first_line, nearest
from pcd_hub.files.read import read_bounded
from pcd_hub.files.strict_json import parse_json
from pcd_hub.train.configs.fields import (
    Option,
    allows,
    as_typed,
    bounds,
    groups,
    one_as_text,
    options,
    wrong_value,
)
from pcd_hub.train.configs.flat import is_removed

log = logging.getLogger("pcd_hub")

ConfigT = TypeVar("ConfigT")

MAX_BYTES = 2**20

_WHERE = ("output_dir", "resume", "accept_changed_data", "project", "run_name")
"""Fields of the group ``run`` that only locate, name or resume a run."""

_CHANGES = "changed_at_resume"


def plain(config: object) -> dict[str, Any]:
    """Convert a configuration to plain JSON containers; a single source is a text."""
    found = json.loads(json.dumps(dataclasses.asdict(cast("Any", config)), default=str))
    data = found.get("data", {})
    if isinstance(data.get("source"), list):
        data["source"] = one_as_text(tuple(data["source"]))
    return found


def recorded(config: object) -> dict[str, Any]:
    """Convert a configuration to plain JSON containers, without the fields in ``_WHERE``."""
    found = plain(config)
    for name in _WHERE:
        found.get("run", {}).pop(name, None)
    return found


def as_yaml(config: object, *, without: Collection[str] = ()) -> str:
    """Return a configuration as a YAML file that ``--config`` reads.

    Args:
        config: The configuration.
        without: Fields to omit, as ``group.field``.
    """
    found = recorded(config)
    for name in without:
        group, _, last = name.rpartition(".")
        (found[group] if group else found).pop(last)
    return yaml.safe_dump(found, sort_keys=False)


def read_fields(config: object, file: str) -> dict[str, Any]:
    """Return the fields of ``config`` that a file sets, as ``group.field``.

    Raises:
        ConfigError: If the file cannot be read or is not a mapping, a key is unknown, or a value
            is invalid.
    """
    label = file if file.isprintable() else ascii(file)
    return checked_fields(config, _settings(read_document(file, f"--config {label}"), label), label)


def checked_fields(config: object, found: Mapping[Any, Any], label: str) -> dict[str, Any]:
    """Return the fields of ``config`` that a mapping sets, as ``group.field``.

    Args:
        config: The configuration.
        found: Values by ``group.field``, or by field in one mapping for each group.
        label: Origin of the values, for errors.

    Raises:
        ConfigError: If a name is unknown or given twice, or a value is invalid.
    """
    known = {option.key: option for option in options(config)}
    its_groups = frozenset(groups(config))
    changes: dict[str, Any] = {}
    for key, value in _fields(found, its_groups, label):
        if key in changes:
            raise ConfigError(f"{label}: {key} is given twice, expected once")
        if key in known:
            changes[key] = _value(known[key], value, label)
        elif not is_removed(key, value):
            raise _unknown(key, value, label, known, its_groups)
    return changes


def read_document(file: str, what: str) -> Any:
    """Return the content of a YAML file, or of a JSON file if its name ends in ``.json``.

    Args:
        file: The file.
        what: Name of the file in errors.

    Raises:
        ConfigError: If it cannot be read, or is not YAML or JSON.
    """
    path = local_path(file)
    try:
        raw = read_bounded(path, MAX_BYTES)
    except OSError as error:
        why = error.strerror or "it is missing or not a regular file"
        raise ConfigError(f"{what}: cannot read it ({why})") from error
    except ValueError as error:
        raise ConfigError(
            f"{what}: expected the name of a file of at most {MAX_BYTES} bytes"
        ) from error
    try:
        if path.suffix == ".json":
            return parse_json(raw, what="it", max_bytes=MAX_BYTES)
        return yaml.load(raw.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        why = "nested too deeply"
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        why = as_typed(error.problem or error.context or "") + line
    except WeightError as error:
        why = first_line(error)
    except (yaml.YAMLError, ValueError) as error:
        why = as_typed(first_line(error))
    raise ConfigError(f"{what}: expected YAML, or JSON in a .json file ({why})")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, where ``no`` is text and ``1e-3`` a number; without aliases."""

    yaml_implicit_resolvers: dict[Any, list[Any]] = {}  # noqa: RUF012 - as PyYAML declares it

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few of them can expand to gigabytes
            raise yaml.MarkedYAMLError(
                problem="aliases are not supported", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        found = super().construct_mapping(node, deep=deep)
        if len(found) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key is given twice", problem_mark=node.start_mark)
        return found


for _kind, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None
    )


def _settings(found: Any, label: str) -> Mapping[Any, Any]:
    """Return the configuration, extracted if ``found`` is a record or a manifest."""
    for key in ("record", "config"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"--config {label}: expected groups of fields, found {as_typed(found) or 'nothing'}"
        )
    if _CHANGES in found:
        log.warning("%s: the run was resumed with other settings; these are its last", label)
    return {key: value for key, value in found.items() if key != _CHANGES}


def _fields(
    found: Mapping[Any, Any], its_groups: Collection[str], label: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield each field as ``group.field`` and its value."""
    for key, value in found.items():
        if not isinstance(key, str):
            raise ConfigError(f"{label}: expected the name of a field, found {as_typed(key)}")
        name = prefix + key.replace("-", "_")
        if isinstance(value, Mapping) and (value or name in its_groups):
            yield from _fields(value, its_groups, label, f"{name}.")
        elif value is not None or name not in its_groups:  # a group whose fields are commented out
            yield name, value


def _unknown(
    name: str, value: object, label: str, known: Collection[str], its_groups: Collection[str]
) -> ConfigError:
    shown = as_typed(name)
    if name in its_groups:
        return ConfigError(f"{label}: {shown} {as_typed(value)}: expected a group of fields")
    last = name.rpartition(".")[2]
    longer = [each for each in known if each.rpartition(".")[2].startswith(last)]
    likely = nearest(name, known) or nearest(last, longer, cutoff=0)
    return ConfigError(f"{label}: unknown field '{shown}'{likely}")


def _value(option: Option, value: object, label: str) -> object:
    is_one = option.key == "data.source" and isinstance(value, str)  # as it is recorded
    converted = _as_kind(
        option.kind, list(filter(None, [value])) if is_one and _is_tuple(option.kind) else value
    )
    if not allows(option.kind, converted):
        named = dataclasses.replace(option, name=f"{label}: {option.key}")
        raise wrong_value(named, converted)
    return converted


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _as_kind(kind: Any, value: Any) -> Any:
    """Convert ``value`` to the type of a field annotated with ``kind``.

    YAML and JSON have lists for tuples, text for paths, and integers for whole floats.
    """
    inner = typing.get_args(kind)
    match typing.get_origin(kind):
        case None if kind is Path and isinstance(value, str):
            return Path(value)
        case typing.Annotated if found := bounds(kind):
            is_small = type(value) is int and abs(value) < 2**53
            return float(value) if found.number is float and is_small else value
        case types.UnionType | typing.Union:
            tried = (_as_kind(one, value) for one in inner)
            return next((v for one, v in zip(inner, tried, strict=True) if allows(one, v)), value)
        case origin if origin is tuple and isinstance(value, list):
            kinds = inner[:1] * len(value) if inner[-1] is ... else inner
            same_length = len(kinds) == len(value)
            return tuple(map(_as_kind, kinds, value)) if same_length else tuple(value)
    return value


def with_fields(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """Return ``config`` with the fields in ``changes`` replaced, named ``group.field``."""
    own: dict[str, Any] = {}
    of_groups: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, dot, rest = name.partition(".")
        if dot:
            of_groups.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    for name, inner in of_groups.items():
        own[name] = with_fields(getattr(config, name), inner)
    return dataclasses.replace(cast("Any", config), **own)
