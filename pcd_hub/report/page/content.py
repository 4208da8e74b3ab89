"""Collect the content of a run's report from the files of its folder."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcd_hub.data.multiband.names import RGB
from pcd_hub.data.survey.result import Survey
from pcd_hub.errors import ConfigError, WeightError, first_line
from pcd_hub.image_size import format_size, height_width
from pcd_hub.report.advice import Situation, next_steps
from pcd_hub.report.page.curves import find_curves
from pcd_hub.report.page.run_folder import Line, RunFiles, read_run
from pcd_hub.report.page.timing import split_time
from pcd_hub.report.run_report import LoggedVerdict, RunReport, Sheet, as_sentence, last_fault
from pcd_hub.weights.catalogue import finished_export
from pcd_hub.weights.input_bands import recorded_bands
from pcd_hub.weights.record import WeightRecord

_NOISE = 1.0
"""Difference of two scores of one seed, in %, that is not called better or worse."""

_PICTURES = {
    "training.png": "Loss and learning rate",
    "pca.png": "First three principal components of the feature maps as colours: generated "
    "scenes, teacher, student",
    "views.png": "Two views of each image of the first batch",
    "probe.png": "Segmentation by the linear probe on generated scenes: scenes, labels, then the "
    "models of the table",
}


def read_report(folder: Path) -> RunReport:
    """Read a finished run and collect its report.

    Raises:
        ConfigError: If the folder holds no finished distillation, or its files contradict each
            other.
    """
    files = read_run(folder)
    try:
        return build_report(files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{folder} is damaged ({type(error).__name__}: {first_line(error)}); expected the "
            "files of a finished run of pcd-hub distill: restore them, or name another run"
        ) from error


def build_report(files: RunFiles) -> RunReport:
    """Collect the facts of a run; see :func:`read_report`."""
    record, notes, folder = files.record, files.notes, files.folder
    shown = {sheet.path for sheet in (notes.features, notes.receptive_field) if sheet}
    return RunReport(
        weight=record.name,
        run=str(folder),
        load=_load(folder),
        what=_what(record),
        verdict=verdict(record, run=str(folder)),
        early_verdicts=_early_verdicts(record),
        measurements=record.measurements(),
        summary=_summary(record),
        settings=files.decisions,
        config_name=record.recipe.rpartition(" ")[2],
        config=dict(flat_config(record.config)),
        survey={} if files.survey is None else describe_survey(files.survey),
        duplicates=() if files.survey is None else files.survey.examples,
        training=_training(record, files.metrics),
        timing=split_time(record, files.metrics),
        curves=find_curves(files.metrics, files.scores),
        features=_existing(folder, notes.features),
        receptive_field=_existing(folder, notes.receptive_field),
        receptive_sides=_sides(notes.receptive_field, notes.receptive_sides),
        warnings=[*notes.warnings, *files.damaged],
        pictures={
            f"pictures/{name}": caption
            for name, caption in _PICTURES.items()
            if f"pictures/{name}" not in shown and (folder / "pictures" / name).is_file()
        },
        licenses=record.licenses,
        reads_rgb=_reads_rgb(record),
        advice=next_steps(_situation(files)),
    )


def verdict(record: WeightRecord, *, run: str) -> str:
    """Return one sentence: whether the student is better than its start, and by how much."""
    if record.held_out.get("start"):
        return str(record.held_out["verdict"])
    measured = record.measurements()
    table = measured.get("probe_data") or measured.get("scene_probe")
    start_label = next((m for m in table.means if is_start(m)), None) if table else None
    if table is None or start_label is None:
        shown = "it was not measured whether the student is better than its start"
        if not _reads_rgb(record):
            return f"{shown}; evaluations read RGB images alone"
        return f"{shown}; on labelled images `pcd-hub probe LABELLED {shlex.quote(run)}` shows it"
    start, student = table.means[start_label], table.means[table.subject]
    better, worse = student - start > _NOISE, start - student > _NOISE
    outcome = "better than" if better else "worse than" if worse else "about as good as"
    return (
        f"the student is {outcome} its start: {student:.1f} {table.unit} {table.metric}, the "
        f"start {start:.1f} ({table.task}, {table.dataset}, n = {table.images})"
    )


def _reads_rgb(record: WeightRecord) -> bool:
    return recorded_bands(record) == RGB


def is_start(model: str) -> bool:
    """Return whether a table's model is the student before training."""
    return model == "random weights" or model.startswith("start (")


def describe_survey(survey: Survey) -> dict[str, object]:
    """Return the results of the survey by label."""
    counted = "a stream" if survey.num_images is None else f"{survey.num_images:,}"
    short = f"{survey.short_side} px ({survey.smallest_side} to {survey.largest_side})"
    broken = f"{survey.num_broken} ({survey.first_broken})" if survey.num_broken else 0
    return {
        "images": counted,
        "read for this survey": f"{survey.num_sampled:,}",
        "shorter side, median": short,
        "cannot be decoded": broken,
        "exact copies": f"{survey.num_exact_copies} among {survey.num_compared:,}",
        "near copies": f"{survey.num_near_copies} among {survey.num_sampled:,}",
    }


def flat_config(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return every option of a configuration with its value, as typed on a command line."""
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found += flat_config(value, f"{name}.")
        else:
            values = value if isinstance(value, list) else [value]
            found.append((f"--{name.replace('_', '-')}", " ".join(map(str, values))))
    return found


def _load(folder: Path) -> str:
    try:
        return f"local-dir:{finished_export(folder).absolute()}"
    except WeightError:
        return ""


def _what(record: WeightRecord) -> str:
    data, parameters = record.data, record.model.get("parameters")
    size = f" ({parameters / 1e6:.1f} M parameters)" if parameters else ""
    count = "a stream of images" if data["images"] is None else f"{data['images']:,} images"
    teacher = record.teacher
    return (
        f"{record.architecture}{size}, from {_start(record)}, was distilled from "
        f"{teacher['architecture']} ({teacher['source']}) on {count} of "
        f"{', '.join(record.sources)} without labels, by Pixel-Wise Contrastive Distillation."
    )


def _start(record: WeightRecord) -> str:
    return str(record.start["name"]) if record.start else "random weights"


def _summary(record: WeightRecord) -> dict[str, object]:
    config, teacher = record.config, record.teacher
    size = format_size(height_width(config["data"]["image_size"]))
    count = record.data["images"]
    images = f"{', '.join(record.sources)}: {'a stream' if count is None else f'{count:,} images'}"
    if held_out := record.held_out.get("images"):
        images += f" for training, {held_out:,} others held out"
    return {
        "student": f"{record.architecture}, from {_start(record)}",
        "teacher": f"{teacher['source']} ({teacher['architecture']}, licence {teacher['license']})",
        "images": images,
        "views": f"two of {size} px for each image{_early(record)}",
        "loss": f"{config['method']['loss']}, {config['method']['targets']}",
    }


def _early(record: WeightRecord) -> str:
    """Return ", of 32 px in the first 3 steps" if the first views were smaller."""
    data = record.config["data"]
    planned = record.held_out.get("planned_steps") or record.steps
    steps = round((data.get("early_share") or 0) * planned)
    if data.get("early_image_size") is None or steps == 0:
        return ""
    return f", of {format_size(data['early_image_size'])} px in the first {steps:,} steps"


def _training(record: WeightRecord, lines: Sequence[Line]) -> dict[str, object]:
    hardware, images = record.hardware, record.data["images"]
    passes = f" ({record.images_seen / images:.2g} passes)" if images else ""
    batch = record.config["optim"]["global_batch_size"]
    losses = [line["loss"] for line in lines if "loss" in line]
    speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
    precision = record.config.get("speed", {}).get("precision", "precision not stated")
    facts: dict[str, object] = {
        "steps": f"{record.steps:,}, each with {batch} images",
        "images seen": f"{record.images_seen:,}{passes}",
        "time": f"{hardware['seconds'] / 60:.1f} minutes since the last start",
        "device": f"{hardware['device']}, {hardware['processes']} process(es), {precision}",
    }
    if speeds:
        facts["speed"] = f"{statistics.median(speeds):.1f} images/s"
    if losses:
        end = f" at first, {losses[-1]:.3f} at the end" if len(losses) > 1 else ""
        facts["loss"] = f"{losses[0]:.3f}{end}"
    return facts


def _situation(files: RunFiles) -> Situation:
    record, survey = files.record, files.survey
    held_out = record.held_out if record.held_out.get("start") else {}
    images = record.data["images"]
    waits = [line["data_wait"] for line in files.metrics if "data_wait" in line]
    return Situation(
        run=shlex.quote(str(files.folder)),
        outcome=held_out.get("outcome", "not measured"),
        still_improving=bool(held_out) and held_out["best_step"] == held_out["last_step"],
        stopped_early=bool(held_out.get("stopped_early")),
        num_images=images,
        passes=record.images_seen / images if images else 0.0,
        share_of_copies=0.0 if survey is None else _share_of_copies(survey),
        data_wait=statistics.median(waits) if waits else 0.0,
        on_scenes=all(source.startswith("scenes:") for source in record.sources),
        teacher=str(record.teacher["source"]),
        starts_from_weights=bool(record.start),
        fault=_remedy(last_fault(_early_verdicts(record))),
        reads_rgb=_reads_rgb(record),
    )


def _early_verdicts(record: WeightRecord) -> tuple[LoggedVerdict, ...]:
    return tuple(filter(None, map(LoggedVerdict.from_json, record.verdicts)))


def _remedy(fault: LoggedVerdict | None) -> str:
    if fault is None:
        return ""
    return as_sentence(f'the last early verdict was "{fault.kind}": {fault.remedy or fault.words}')


def _share_of_copies(survey: Survey) -> float:
    exact = survey.num_exact_copies / max(1, survey.num_compared)
    return exact + survey.num_near_copies / max(1, survey.num_sampled)


def _existing(folder: Path, sheet: Sheet | None) -> Sheet | None:
    """Return the sheet if its picture is in the run's folder of pictures."""
    if sheet is None or Path(sheet.path).parts[:-1] != ("pictures",):
        return None
    return sheet if (folder / sheet.path).is_file() else None


def _sides(sheet: Sheet | None, sides: Sequence[float]) -> dict[str, float]:
    return dict(zip(sheet.columns, sides, strict=False)) if sheet else {}
