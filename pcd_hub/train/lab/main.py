"""Run a list of distillations and evaluations (``recipes/lab.py``)."""

import functools
from collections.abc import Iterator
from pathlib import Path

from pcd_hub.data.labelled.image_classes import image_classes
from pcd_hub.data.sources.open import open_sources
from pcd_hub.data.sources.uris import is_dir
from pcd_hub.errors import ConfigError
from pcd_hub.files.write import atomic_write
from pcd_hub.models.entries import check_architecture
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train import contrast, distill
from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.configs.contrast import ContrastConfig
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.lab.jobs import (
    ROWS,
    Job,
    alone_in,
    check_options,
    read_state,
    row_folder,
    run_job,
)
from pcd_hub.train.lab.options import LabConfig, parse_lab
from pcd_hub.train.lab.plan import SET_BY_LAB, TRAINING, Plan, Row, RowEvaluation, read_plan
from pcd_hub.train.lab.table import save_table
from pcd_hub.train.launch import quiet_logs
from pcd_hub.weights.catalogue import finished_export


def main(arguments: list[str]) -> None:
    """Run what is missing, one row after the other, and write the table after each."""
    options, file, folder = parse_lab(arguments)
    quiet_logs()
    plan = read_plan(file, options)
    if options.table and not is_dir(folder / ROWS):
        raise ConfigError(f"{folder} has no results; expected the --output-dir of a lab")
    with alone_in(folder, lock=not options.table):
        if not options.table:
            run_all(plan, options, folder, text=file.read_text())
        print(f"\n{save_table(plan, folder)}\n\n{folder / 'table.md'}")


def run_all(plan: Plan, options: LabConfig, folder: Path, *, text: str) -> None:
    """Run every row with the first seed, then with the second ...

    Args:
        plan: The list.
        options: Which part of it to run.
        folder: Folder of all results.
        text: Content of the list's file, of which a copy is kept.
    """
    rows = [row for row in plan.rows if not options.only or row.name in options.only]
    evaluations = [
        one
        for one in plan.evaluations
        if not options.evaluations or one.name in options.evaluations
    ]
    check(plan, rows, evaluations, folder)
    atomic_write(folder / "list.yaml", text)
    for seed in plan.seeds:
        for row in rows:
            run_row(row, evaluations, seed, folder, retry_failed=options.retry_failed)
            save_table(plan, folder)


def run_row(
    row: Row,
    evaluations: list[RowEvaluation],
    seed: int,
    folder: Path,
    *,
    retry_failed: bool = False,
) -> None:
    """Train and evaluate one row at one seed; nothing is evaluated if the training fails."""
    for job in jobs_of(row, evaluations, seed, folder):
        state = run_job(job, retry_failed=retry_failed)
        if state == "failed" and job.folder.name == TRAINING:
            return


def check(plan: Plan, rows: list[Row], evaluations: list[RowEvaluation], folder: Path) -> None:
    """Check before the first step what can be known by then.

    Raises:
        PCDHubError: If images, a teacher, a labelled set or an architecture is missing, a row
            starts from one that will not be there, or finished runs had other options.
    """
    for seed in plan.seeds:
        for row in rows:
            _check_start(row, rows, seed, folder)
            for job in jobs_of(row, evaluations, seed, folder):
                check_options(job)
    for one in evaluations:
        one.recipe.open_images(one.config.data)
    for row in rows:
        if row.model is None and isinstance(row.config, ContrastConfig):
            _check_pretraining(row.config)
    _check_distillations([row.distilled for row in rows if row.distilled])


def _check_pretraining(config: ContrastConfig) -> None:
    check_architecture(config.encoder.arch)
    source = open_sources(config.data.source)
    if config.method.labels:
        image_classes(source, config.method.labels)


def _check_distillations(configs: list[DistillConfig]) -> None:
    for arch in {config.student.arch for config in configs}:
        check_architecture(arch)
    for sources in {config.data.source for config in configs}:
        if not any(sources):
            raise ConfigError("no images are given; expected --images, or data.source in the list")
        open_sources(sources)
    for teacher in {config.teacher.source for config in configs}:
        load_teacher(teacher)


def jobs_of(row: Row, evaluations: list[RowEvaluation], seed: int, folder: Path) -> Iterator[Job]:
    """Yield the training of a row at one seed, if it is trained, and its evaluations."""
    place = row_folder(folder, row.name, seed)
    if row.model is None:
        yield Job(
            folder=place / TRAINING,
            model=None,
            config=row.config,
            set_by_lab=SET_BY_LAB,
            not_used=row.distilled.derived - row.given if row.distilled else frozenset(),
            main=distill.main if row.distilled else contrast.main,
            arguments=functools.partial(_training_arguments, row, seed, folder),
            can_resume=True,
        )
    for one in evaluations:
        yield Job(
            folder=place / one.name,
            model=row.model,
            config=one.config,
            set_by_lab=one.recipe.set_by_lab,
            main=one.recipe.main,
            arguments=functools.partial(_evaluation_arguments, one, row, seed, place),
            can_resume=one.recipe.trains,
        )


def _training_arguments(row: Row, seed: int, folder: Path) -> list[str]:
    start = (
        [f"--student.weights={_student(row_folder(folder, row.start, seed))}"] if row.start else []
    )
    return [f"--run.seed={seed}", *start]


def _evaluation_arguments(one: RowEvaluation, row: Row, seed: int, place: Path) -> list[str]:
    """Return the options of model and seeds.

    Frozen features of a student are scored at the seeds of the evaluation; a model that is not
    trained at the row's seed alone, from which random weights are drawn.
    """
    model = _student(place) if row.distilled else row.model or _pretrained(place)
    if one.recipe.trains:
        return [f"--model={model}", f"--run.seed={seed}"]
    seeds = [] if row.model is None else ["--run.seeds", str(seed)]
    return ["--models", model, *seeds]


def _pretrained(place: Path) -> str:
    return f"teacher:local-dir:{(place / TRAINING / 'teacher').absolute()}"


def _student(place: Path) -> str:
    return f"local-dir:{finished_export(place / TRAINING).absolute()}"


def _check_start(row: Row, rows: list[Row], seed: int, folder: Path) -> None:
    if row.start is None or row.start in {each.name for each in rows}:
        return
    if read_state(row_folder(folder, row.start, seed) / TRAINING).get("state") != "done":
        raise ConfigError(
            f"row {row.name} starts from row {row.start}, which is not finished with seed {seed}; "
            "add it to --only"
        )


if __name__ == "__main__":
    run_main(main)
