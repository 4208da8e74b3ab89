"""The models of a probe: those that are named, and the references; and where results are kept."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from pcd_hub.data.sources.uris import is_file
from pcd_hub.evaluate.models import known_sha256
from pcd_hub.evaluate.results import Evaluation, ModelScores
from pcd_hub.evaluate.results_file.file import append_result, check_new, place_of, read_results
from pcd_hub.evaluate.results_file.line import result_line
from pcd_hub.train.configs.probes import KnnConfig, LinearSegConfig
from pcd_hub.train.frozen.references import REFERENCES, reachable_references


def select_models(
    config: LinearSegConfig | KnnConfig, tables: Sequence[Evaluation]
) -> list[tuple[Evaluation, list[str]]]:
    """Return each table with the models to be scored for it.

    References whose results are in the file of ``--append`` are not scored again. Those that cannot
    be used are stated in the tables' details.

    Args:
        config: The configuration.
        tables: The empty tables.

    Raises:
        ConfigError: If a result of a named model cannot be appended.
        DataError: If the file of ``--append`` is not a results file.
    """
    models = list(config.models)
    if config.append:
        for table in tables:
            check_new(config.append, table, models)
    if not config.references:
        return [(table, models) for table in tables]
    present = [_present(config.append, table) for table in tables]
    in_all = [name for name in REFERENCES if all(name in names for names in present)]
    reachable, left_out = reachable_references(
        [*models, *in_all], image_size=config.data.image_size
    )
    stated = {"references_left_out": left_out} if left_out else {}
    return [
        (
            dataclasses.replace(table, details=table.details | stated),
            [*models, *(name for name in reachable if name not in names)],
        )
        for table, names in zip(tables, present, strict=True)
    ]


def _present(file: Path | None, table: Evaluation) -> list[str]:
    """Return the references that the file has a result of, and print them."""
    if file is None or not is_file(file):
        return []
    found = read_results(file)
    names = [name for name in REFERENCES if place_of(found, table, name)]
    if names:
        print(f"{table.task}: {', '.join(names)} in {file} already", file=sys.stderr)
    return names


def append_scores(file: Path | None, table: Evaluation, scores: ModelScores) -> None:
    """Append the scores of one model to a results file, if one is given.

    Raises:
        PCDHubError: If they cannot be appended.
    """
    if file is not None:
        sha256 = scores.weights_sha256 or known_sha256(scores.name)
        append_result(file, result_line(table, scores, sha256))
