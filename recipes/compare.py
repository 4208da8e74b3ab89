"""Tables of several evaluations: models by metrics, the best in bold; and into a weight's record.

    python recipes/compare.py runs/linear_seg runs/knn
    python recipes/compare.py runs/* --run.output-dir comparison --into resnet18.pcd

Runs of the same evaluation with other models or other seeds become one table. ``--into`` writes
the tables into the record and the card of a weight, in the local store or in a run's ``export/``,
if that very weights file was measured.
"""

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from pcd_hub.data.uris import is_dir, is_file
from pcd_hub.errors import ConfigError, DataError, WeightError
from pcd_hub.evaluate.results import FILE, Evaluation, join
from pcd_hub.train.configs.command_line import override, run
from pcd_hub.train.run_folder.folder import new_folder
from pcd_hub.weights import store
from pcd_hub.weights.export import add_measurements
from pcd_hub.weights.manifest import read_manifest, weights_sha256, write_json
from pcd_hub.weights.record import Measurement


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Where the tables go, besides the screen."""

    output_dir: Path | None = None
    """Write comparison.md and comparison.json here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """recipes/compare.py: tables of several evaluations, and into the record of a weight."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of evaluations, or folders with such below them."""
    run: ComparisonConfig = dataclasses.field(default_factory=ComparisonConfig)
    into: str | None = None
    """A name in the local store, or an export's folder."""


def main(arguments: list[str]) -> None:
    """Join, print, write."""
    config = override(CompareConfig(), arguments)
    tables = joined_tables(config.runs)
    text = "\n\n".join(table.table() for table in tables)
    print(text)
    if config.run.output_dir:
        folder = new_folder(config.run.output_dir, "comparison")
        (folder / "comparison.md").write_text(text + "\n")
        write_json(folder / "comparison.json", [dataclasses.asdict(table) for table in tables])
    if config.into:
        print(f"\n{write_into(config.into, tables)} holds these tables in its record and card")


def joined_tables(runs: tuple[Path, ...]) -> list[Evaluation]:
    """One table for each task and data set, in the order of the runs."""
    if not runs:
        raise ConfigError("name at least one run: python recipes/compare.py runs/linear_seg")
    found: dict[tuple[str, str], list[Evaluation]] = {}
    for path in itertools.chain.from_iterable(map(_evaluations, runs)):
        table = Evaluation.load(path)
        found.setdefault((table.task, table.dataset), []).append(table)
    if not found:
        raise DataError(f"{', '.join(map(str, runs))}: there is no {FILE}; did the run finish?")
    return [join(tables) for tables in found.values()]


def _evaluations(run_folder: Path) -> list[Path]:
    if is_file(run_folder):
        return [run_folder]
    return sorted(run_folder.rglob(FILE)) if is_dir(run_folder) else []


def write_into(weight: str, tables: list[Evaluation]) -> Path:
    """Put the tables into the record of a weight; what was there before is kept until then.

    Raises:
        WeightError: If there is no such weight, it is damaged, or it is not what was measured.
    """
    stored = store.where(weight) if store.is_name(weight) else None
    folder = stored or Path(weight)
    sha256, name = weights_sha256(folder), read_manifest(folder)["record"]["name"]
    measured = {
        short_name: measurement
        for table in tables
        for short_name, measurement in _measurements(table, sha256, name, folder).items()
    }
    beside = None if stored else folder.parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=".compare-") as scratch:
        new = add_measurements(folder, measured, Path(scratch) / "export")
        if stored:
            store.add(weight, new)
            return store.where(weight) or stored
        before = folder.rename(Path(scratch) / "before")
        try:
            new.rename(folder)
        except BaseException:
            before.rename(folder)
            raise
    run_record = folder.parent / "record.json"
    if run_record.is_file():
        write_json(run_record, read_manifest(folder)["record"])
    return folder


def _measurements(
    table: Evaluation, sha256: str, name: str, folder: Path
) -> dict[str, Measurement]:
    subject = next((model for model, s in table.weights_sha256.items() if s == sha256), None)
    if subject is None:
        measured = ", ".join(f"{m} ({s[:12]})" for m, s in table.weights_sha256.items()) or "none"
        raise WeightError(
            f"{table.task} on {table.dataset} did not measure {folder} (weights sha256 "
            f"{sha256[:12]}); of our weights it measured {measured}. Run it with this one"
        )
    return table.measurements(subject, name)


if __name__ == "__main__":
    run(main)
