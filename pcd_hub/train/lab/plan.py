"""Read a list of runs: rows that share a base configuration, seeds and evaluations.

::

    base:                          # of all rows: fields of recipes/distill.py
      config: quickstart           # a named configuration, or a YAML file next to this one
      teacher: {image_size: 128}
    baseline: pcd                  # the row that the others are compared with
    seeds: [0, 1, 2]               # of the training
    rows:
      random: {model: random:resnet18}     # not trained
      teacher: {model: teacher}            # the backbone of the teacher
      pcd: {}
      cosine: {method: {loss: cosine_smooth_l1}}
      again: {student.weights: row:pcd}    # starts from that row's student of the same seed
      supervised:                          # recipes/pretrain.py, on the same views and steps
        recipe: pretrain
        method: {loss: cross_entropy, labels: pool/index.csv}
    evaluations:
      facade: {recipe: linear_seg, data: {source: seg_facade, image_size: 96}}

Fields of a row replace those of the base. Students start from random weights unless
``student.weights`` is given: with ``auto``, which the quickstart has, rows would differ in it.
Evaluations are linear_seg, knn, linear_cls, finetune_seg or detect, with fields of that recipe; a
relative ``data.source`` is in ``--labelled``, and so is the file of ``method.labels``.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pcd_hub.data.labelled.image_classes import FOLDERS
from pcd_hub.errors import ConfigError, nearest
from pcd_hub.train.configs.contrast import ContrastConfig
from pcd_hub.train.configs.distill import DISTILL, DistillConfig
from pcd_hub.train.configs.fields import Seed, allows, as_typed, check
from pcd_hub.train.configs.fields import options as options_of
from pcd_hub.train.configs.files import checked_fields, read_document, read_fields, with_fields
from pcd_hub.train.lab.evaluations import RECIPES, Recipe
from pcd_hub.train.lab.options import LabConfig

ConfigT = TypeVar("ConfigT")

TRAINING = "train"
"""Name of a row's training, among its evaluations."""

OF_ROW = "row:"
"""Start of ``student.weights`` if they are the student of another row."""

SET_BY_LAB = frozenset({"run.output_dir", "run.resume", "run.seed"})
_LENGTHS = {"optim.epochs", "optim.iterations", "run.hours"}
_SHARED = frozenset({"data", "optim", "speed", "run"})
"""Groups of the base that a row of pretrain.py takes over."""
_SECTIONS = ("base", "baseline", "seeds", "rows", "evaluations")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table: a training, or a model that is not trained."""

    name: str
    model: str | None = None
    """A model to evaluate without training; None for a row that is trained."""
    config: DistillConfig | ContrastConfig = DISTILL["quickstart"]
    """The training; a ContrastConfig is that of recipes/pretrain.py."""
    given: frozenset[str] = frozenset()
    """Fields that the list sets, as ``group.field``."""

    @property
    def distilled(self) -> DistillConfig | None:
        """The configuration of a distillation; None for other rows."""
        config = self.config
        return config if self.model is None and isinstance(config, DistillConfig) else None

    @property
    def start(self) -> str | None:
        """The row whose student this one starts from, if any."""
        weights = self.distilled.student.weights if self.distilled else ""
        return weights.removeprefix(OF_ROW) if weights.startswith(OF_ROW) else None


@dataclass(frozen=True, kw_only=True)
class RowEvaluation:
    """An evaluation of every row."""

    name: str
    recipe: Recipe
    config: Any


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A list of runs."""

    rows: tuple[Row, ...]
    evaluations: tuple[RowEvaluation, ...]
    seeds: tuple[int, ...]
    baseline: str


def read_plan(file: Path, options: LabConfig) -> Plan:
    """Read a list of runs, with the images, teacher and seeds of the command line.

    Raises:
        ConfigError: If the file cannot be read, or a name or value in it is wrong.
    """
    found = _sections(read_document(str(file), str(file)), str(file))
    base, given = _base(found["base"], file, options)
    rows = tuple(
        _row(name, fields, base, given, labelled=options.labelled, label=f"{file}: row {name}")
        for name, fields in _named(found["rows"], f"{file}: rows").items()
    )
    evaluations = tuple(
        _evaluation(name, fields, base.teacher.source, options.labelled, f"{file}: {name}")
        for name, fields in _named(found["evaluations"], f"{file}: evaluations").items()
    )
    for number, row in enumerate(rows):
        _check_start(row, rows[:number], f"{file}: row {row.name}")
    _check_known(options.only, [row.name for row in rows], "--only")
    _check_known(options.evaluations, [each.name for each in evaluations], "--evaluations")
    baseline = found.get("baseline", rows[0].name)
    _check_known([baseline], [row.name for row in rows], f"{file}: baseline")
    return Plan(
        rows=rows,
        evaluations=evaluations,
        seeds=_seeds(options.seeds or found.get("seeds", [0]), str(file)),
        baseline=baseline,
    )


def _sections(found: Any, label: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise ConfigError(f"{label}: expected the sections {', '.join(_SECTIONS)}")
    _check_known(found, _SECTIONS, f"{label}: section")
    for name in ("rows", "evaluations"):
        if not isinstance(found.get(name), Mapping) or not found[name]:
            raise ConfigError(f"{label}: {name}: expected at least one, by name")
    return {"base": {}, **found}


def _named(found: Mapping[Any, Any], label: str) -> dict[str, Mapping[Any, Any]]:
    """Return the fields by name; names become names of folders."""
    for name, fields in found.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == TRAINING:
            raise ConfigError(
                f"{label}: '{as_typed(name)}': expected a name of letters, digits, '.', '_' and "
                f"'-', not {TRAINING}"
            )
        if not isinstance(fields, Mapping | None):
            raise ConfigError(f"{label}: {name} {as_typed(fields)}: expected fields")
    return {name: fields or {} for name, fields in found.items()}


def _base(found: Any, file: Path, options: LabConfig) -> tuple[DistillConfig, frozenset[str]]:
    label = f"{file}: base"
    if not isinstance(found, Mapping):
        raise ConfigError(f"{label} {as_typed(found)}: expected fields")
    fields = dict(found)
    name = fields.pop("config", "quickstart")
    if Path(str(name)).suffix in {".yaml", ".yml", ".json"}:
        config = DistillConfig()
        from_file = read_fields(config, str(file.parent / name))
    else:
        config, from_file = _named_config(DISTILL, name, label), {}
        if config.student.weights == "auto":
            from_file = {"student.weights": "none"}
    own = checked_fields(config, fields, label)
    if options.images:
        own["data.source"] = options.images
    if options.teacher is not None:
        own["teacher.source"] = options.teacher
    config = _overridden(_overridden(config, from_file), {"run.store": False, **own})
    _check_free(own, SET_BY_LAB, label)
    return config, frozenset(from_file) | frozenset(own)


def _row(
    name: str,
    fields: Mapping[Any, Any],
    base: DistillConfig,
    given: frozenset[str],
    *,
    labelled: Path,
    label: str,
) -> Row:
    if "model" in fields:
        model = fields["model"]
        if len(fields) > 1 or not isinstance(model, str):
            raise ConfigError(f"{label}: expected the name of a model and no other field")
        return Row(
            name=name, model=f"teacher:{base.teacher.source}" if model == "teacher" else model
        )
    if "recipe" in fields:
        return Row(name=name, config=_pretraining(fields, base, labelled, label))
    own = checked_fields(base, fields, label)
    _check_free(own, SET_BY_LAB, label)
    config = _overridden(base, own)
    if len(config.student.architectures) > 1:
        raise ConfigError(f"{label}: student.arch {config.student.arch}: expected one architecture")
    return Row(name=name, config=config, given=given | own.keys())


def _pretraining(
    fields: Mapping[Any, Any], base: DistillConfig, labelled: Path, label: str
) -> ContrastConfig:
    """Return the configuration of pretrain.py on the base's images, views, optimizer and length."""
    fields = dict(fields)
    _check_known([fields.pop("recipe")], ["pretrain"], f"{label}: recipe")
    config = ContrastConfig()
    own = checked_fields(config, fields, label)
    _check_free(own, SET_BY_LAB, label)
    if own.get("method.labels", FOLDERS) != FOLDERS:
        own["method.labels"] = str(labelled / own["method.labels"])
    known = {option.key for option in options_of(config)}
    shared = {
        option.key: option.value
        for option in options_of(base)
        if option.key in known and option.key.partition(".")[0] in _SHARED
    }
    return _overridden(config, {**shared, "encoder.arch": base.student.arch, **own})


def _evaluation(
    name: str, fields: Mapping[Any, Any], teacher: str, labelled: Path, label: str
) -> RowEvaluation:
    fields = dict(fields)
    kind = fields.pop("recipe", None)
    _check_known([kind], RECIPES, f"{label}: recipe")
    recipe = RECIPES[kind]
    config = _named_config(recipe.configs, fields.pop("config", recipe.default), label)
    own = checked_fields(config, fields, label)
    _check_free(own, recipe.set_by_lab, label)
    if hasattr(config, "teacher"):
        own.setdefault("teacher.source", teacher)
    source = own.get("data.source")
    if source and ":" not in str(source):
        joined = labelled / source
        own["data.source"] = joined if isinstance(source, Path) else str(joined)
    return RowEvaluation(name=name, recipe=recipe, config=_overridden(config, own))


def _overridden(config: ConfigT, fields: Mapping[str, Any]) -> ConfigT:
    """Return ``config`` with ``fields``; another length replaces max-steps."""
    if fields.keys() & _LENGTHS:
        config = with_fields(config, {"run.max_steps": None})
    config = with_fields(config, fields)
    check(config)
    return config


def _named_config(configs: Mapping[str, ConfigT], name: Any, label: str) -> ConfigT:
    _check_known([name], configs, f"{label}: config")
    return configs[name]


def _check_start(row: Row, before: Collection[Row], label: str) -> None:
    if row.start is not None:
        trained = [each.name for each in before if each.distilled]
        _check_known([row.start], trained, f"{label}: student.weights {OF_ROW}")


def _seeds(found: Any, label: str) -> tuple[int, ...]:
    seeds = tuple(found) if isinstance(found, list | tuple) else ()
    if not seeds or len(set(seeds)) < len(seeds) or not all(allows(Seed, one) for one in seeds):
        raise ConfigError(f"{label}: seeds {as_typed(found)}: expected different integers >= 0")
    return seeds


def _check_free(fields: Collection[str], reserved: Collection[str], label: str) -> None:
    for name in sorted(set(fields) & set(reserved)):
        raise ConfigError(f"{label}: {name} is set for each run by the lab; leave it out")


def _check_known(names: Collection[Any], known: Collection[str], label: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{label} {as_typed(name)}{nearest(str(name), known)}; expected one of "
                f"{', '.join(known) or 'none'}"
            )
