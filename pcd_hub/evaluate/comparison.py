"""Join the tables of several runs, and add them to a weight's record and card."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import DataError, WeightError
from pcd_hub.evaluate.results import FILE, Evaluation, join
from pcd_hub.evaluate.results_file.file import SUFFIX, read_results
from pcd_hub.evaluate.results_file.tables import with_lines
from pcd_hub.weights import shipped, store
from pcd_hub.weights.catalogue import exported_folder, last_export
from pcd_hub.weights.export import add_measurements
from pcd_hub.weights.manifest import read_manifest, weights_sha256, write_json
from pcd_hub.weights.record import Measurement


def joined_tables(runs: Sequence[Path]) -> list[Evaluation]:
    """Load the tables of some runs and join those of the same task and data set, in order.

    Results of two versions of a protocol become two tables. In a results file, so do results with
    other settings, images or seeds.

    Args:
        runs: Files, or folders that contain ``evaluation.json`` at any depth; results files
            (``NAME.jsonl``).

    Raises:
        DataError: If a run has no table, or tables of the same evaluation cannot be joined.
    """
    tables: dict[tuple[str, str, int], list[Evaluation]] = {}
    lines = [run for run in runs if run.suffix == SUFFIX and is_file(run)]
    folders = [run for run in runs if run not in lines]
    for path in itertools.chain.from_iterable(map(_evaluation_files, folders)):
        table = Evaluation.load(path)
        alike = (table.task, table.dataset, table.protocol_version)
        tables.setdefault(alike, []).append(table)
    results = itertools.chain.from_iterable(read_results(file).items() for file in lines)
    if not (found := with_lines(map(join, tables.values()), results)):
        raise DataError(f"{', '.join(map(str, runs))}: expected at least one result, found none")
    return found


def _evaluation_files(run: Path) -> list[Path]:
    if is_file(run):
        return [run]
    if not is_dir(run):
        raise DataError(f"{run}: no such folder; expected the folder of an evaluation")
    if not (files := sorted(run.rglob(FILE))):
        raise DataError(f"{run}: there is no {FILE}; did the run finish?")
    return files


def add_to_weight(weight: str, tables: Sequence[Evaluation]) -> Path:
    """Add tables to a weight's record and card, atomically.

    Args:
        weight: A name in the local store, or the folder of a run or an export.
        tables: Tables with scores of exactly this weights file (same sha256).

    Returns:
        The weight's folder.

    Raises:
        WeightError: If the weight does not exist, is damaged, or is not the measured file.
    """
    path = store.expanded(weight)
    if path.parent.absolute() == store.home().absolute():
        weight = path.name  # the link of a stored weight is replaced by the store alone
    stored = store.where(weight) if store.is_name(weight) else None
    if stored is None and shipped.where(weight):
        raise WeightError(
            f"{weight} is shipped with pcd_hub, which stays as it is; expected a name in "
            f"{store.home()}, or the folder of an export"
        )
    folder = stored or exported_folder(path) or path
    sha256, name = weights_sha256(folder), read_manifest(folder)["record"]["name"]
    measured = {
        short_name: measurement
        for table in tables
        for short_name, measurement in _measurements(table, sha256, name, folder).items()
    }
    parent = None if stored else folder.parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=".compare-") as scratch:
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
    if run_record.is_file() and folder.name == last_export(folder.parent).name:
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
            f"{sha256[:12]}); the pcd_hub weights it measured: {measured}. Run it with this one"
        )
    return table.measurements(subject, name)
