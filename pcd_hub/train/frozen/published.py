"""Published data sets by name: ``pcd-hub probe oxford_pets`` and ``pcd-hub probe benchmark``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pcd_hub.data.labelled.published.download import is_ready, prepare_set
from pcd_hub.data.labelled.published.sets import SETS, PublishedSet
from pcd_hub.data.sources.uris import is_dir, local_path
from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.models import check_models
from pcd_hub.evaluate.results import deviation, mean
from pcd_hub.files.markdown import table
from pcd_hub.train.configs.command_line import parse_given
from pcd_hub.train.configs.probes import KNN, LINEAR_SEG, KnnConfig, LinearSegConfig
from pcd_hub.weights.store import home

BENCHMARK = "benchmark"
"""Stands for all sets."""

Tables = list[dict[str, Any]]
Probe = Callable[[str, list[str]], Tables]
"""Evaluate models on a folder: data, options."""

_CONFIGS: Mapping[str, Mapping[str, LinearSegConfig | KnnConfig]] = {
    "segmentation": LINEAR_SEG,
    "classification": KNN,
}


def default_place() -> Path:
    """Return the folder of the published sets, inside the local store."""
    return home() / "datasets"


def named_sets(data: str) -> list[PublishedSet]:
    """Return the published sets that a word stands for; none if it is no name of a set.

    Raises:
        ConfigError: If there is also a folder of that name.
    """
    if data not in {BENCHMARK, *SETS}:
        return []
    if is_dir(local_path(data)):
        raise ConfigError(
            f"{data} is a folder here, and the name of a published data set; write ./{data} for "
            "the folder, or start the command in another folder"
        )
    return list(SETS.values()) if data == BENCHMARK else [SETS[data]]


def probe_sets(sets: Sequence[PublishedSet], options: list[str], probe: Probe) -> Tables:
    """Evaluate models on published sets; download all sets before the first evaluation.

    Args:
        sets: The sets.
        options: Options of the evaluations, with ``--models``.
        probe: Evaluates models on a folder.

    Raises:
        ConfigError: If an option is wrong.
        DataError: If a set cannot be downloaded.
        StudentError, WeightError: If a model does not exist.
    """
    given = {one.name: _options_of(one, options, alone=len(sets) == 1) for one in sets}
    folders = {one.name: _prepared(one) for one in sets}
    found = {name: probe(str(folder), given[name]) for name, folder in folders.items()}
    if len(sets) > 1:
        print(f"\n{summary(found)}")
    return [one for tables in found.values() for one in tables]


def _options_of(one: PublishedSet, options: list[str], *, alone: bool) -> list[str]:
    """Return the options of the evaluation on a set, and check options and models."""
    _, config, given = parse_given(_CONFIGS[one.task], "folder", options)
    check_models(config.models, config.run.seeds)
    size = [] if "data.image_size" in given else [f"--data.image-size={one.image_size}"]
    folder = config.run.output_dir
    output = [f"--run.output-dir={folder / one.name}"] if folder and not alone else []
    return [*size, *options, *output]


def _prepared(one: PublishedSet) -> Path:
    place = default_place()
    what = "" if is_ready(one, place / one.name) else f", {one.megabytes} MB to download"
    print(f"{one.name}: {one.content}{what}\n  licence: {one.licence}: {one.licence_source}")
    return prepare_set(one, place)


def summary(found: Mapping[str, Tables]) -> str:
    """Return one table: a row for each model, and a column for the first metric of each set.

    Args:
        found: The tables of the evaluations by set. The first of a set is on its labels.
    """
    columns = {name: tables[0] for name, tables in found.items()}
    heads = ("model", *(_head(name, one) for name, one in columns.items()))
    models = dict.fromkeys(model for one in columns.values() for model in one["scores"])
    rows: list[tuple[object, ...]] = [
        (model, *(_cell(one, model) for one in columns.values())) for model in models
    ]
    return table(heads, rows)


def _head(name: str, one: Mapping[str, Any]) -> str:
    metric, unit = next(iter(one["units"].items()))
    return f"{name}: {metric} ({unit})"


def _cell(one: Mapping[str, Any], model: str) -> str:
    """Return mean and standard deviation of the first metric; empty if it was not scored."""
    values = one["scores"].get(model, {}).get(next(iter(one["units"])))
    if values is None:
        return ""
    noise = f" ± {deviation(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{noise}"
