"""Tables from the lines of results files."""

import dataclasses
from collections.abc import Iterable, Mapping

from pcd_hub.evaluate.results import COMPARABLE, Evaluation
from pcd_hub.evaluate.results_file.line import ResultLine


def with_lines(
    tables: Iterable[Evaluation], lines: Iterable[tuple[str, ResultLine]]
) -> list[Evaluation]:
    """Add each line to the table of its evaluation, images and seeds, or begin a new table.

    A second line of the same model with the same scores is a copy and is left out. With other
    weights or scores it is a row of its own.

    Args:
        tables: Tables to which lines may be added.
        lines: The lines with their places.
    """
    found = {_facts(table): table for table in tables}
    for place, line in lines:
        own = line.table()
        table = found.get(_facts(own))
        found[_facts(own)] = own if table is None else _with_line(table, line, place)
    return list(found.values())


def _facts(table: Evaluation) -> tuple[object, ...]:
    """Return all that must agree for rows to share a table, the order of the metrics included."""
    values = (getattr(table, name) for name in COMPARABLE)
    hashable = (tuple(v.items()) if isinstance(v, Mapping) else v for v in values)
    return (*hashable, table.seeds, table.data_sha256)


def _with_line(table: Evaluation, line: ResultLine, place: str) -> Evaluation:
    row = {name: metric.values for name, metric in line.metrics.items()}
    sha256 = line.weights_sha256
    label, *others = (
        (line.model, f"{line.model} (weights {sha256[:8]})") if sha256 else (line.model,)
    )
    for other in (*others, f"{line.model} ({place})"):
        if label not in table.scores:
            break
        if (table.weights_sha256.get(label), table.scores[label]) == (sha256, row):
            return table
        label = other
    commands = dict.fromkeys([*table.command.split("; "), line.command])
    return dataclasses.replace(
        table.with_model(label, row, weights_sha256=sha256, details=line.facts()),
        command="; ".join(commands),
    )
