"""Write ``report.md`` into the folder of a finished distillation."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcd_hub.files.write import atomic_write
from pcd_hub.image_size import format_size, height_width
from pcd_hub.report.advice import Situation, next_steps
from pcd_hub.report.run_report import RunReport, Setting, render_report
from pcd_hub.train.batches import only_scenes
from pcd_hub.train.distillation.early_views import early_views
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.weights.record import Measurement, WeightRecord

REPORT = "report.md"

_NOISE = 1.0
"""Difference of two scores of one seed, in %, that is not called better or worse."""

_PICTURES = {
    "training.png": "Loss and learning rate",
    "pca.png": "First three principal components of the feature maps as colours: generated "
    "scenes, teacher, student",
    "views.png": "Two views of each image of the first batch",
    "probe.png": "Segmentation by the linear probe",
}


def save_report(
    d: Distillation, record: WeightRecord, *, load: str, warnings: Sequence[str]
) -> Path:
    """Write the report and return its path; call it on the main process.

    Args:
        d: The finished distillation.
        record: The record of the weight.
        load: The weight's name for ``timm.create_model``.
        warnings: The warnings of the run.
    """
    report = build_report(d, record, load=load, warnings=warnings)
    path = d.folder.path / REPORT
    atomic_write(path, render_report(report))
    return path


def build_report(
    d: Distillation, record: WeightRecord, *, load: str, warnings: Sequence[str]
) -> RunReport:
    """Collect the facts of a run; see :func:`save_report`."""
    lines = _metrics(d.folder.path / "metrics.jsonl")
    measured = record.measurements()
    survey = describe_survey(d.survey)
    folder = d.folder.path
    return RunReport(
        weight=record.name,
        run=str(folder),
        load=load,
        verdict=verdict(d, measured),
        measurements=measured,
        summary=_summary(d, record),
        settings=[Setting(option=s.option, value=s.value, reason=s.reason) for s in d.decisions],
        config_name=d.config_name,
        survey=survey,
        duplicates=() if d.survey is None else tuple(d.survey.examples),
        training=_training(d, record, lines),
        warnings=warnings,
        pictures={
            f"pictures/{name}": caption
            for name, caption in _PICTURES.items()
            if (folder / "pictures" / name).exists()
        },
        licenses=record.licenses,
        advice=next_steps(_situation(d, record, lines)),
    )


def verdict(d: Distillation, measured: dict[str, Measurement]) -> str:
    """Return one sentence: whether the student is better than its start, and by how much."""
    if d.held_out is not None and d.held_out.start:
        return d.held_out.verdict()
    table = measured.get("scene_probe")
    if table is None:
        return (
            "it was not measured whether the student is better than its start; on labelled images "
            f"`pcd-hub probe LABELLED {d.folder.path}` shows it"
        )
    start, student = table.means[d.start_label], table.means[table.subject]
    better, worse = student - start > _NOISE, start - student > _NOISE
    outcome = "better than" if better else "worse than" if worse else "about as good as"
    return (
        f"the student is {outcome} its start: {student:.1f} {table.unit} {table.metric}, the "
        f"start {start:.1f} ({table.task}, {table.dataset}, n = {table.images})"
    )


def describe_survey(survey: Any) -> dict[str, object]:
    """Return the results of the survey by label."""
    if survey is None:
        return {}
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


def _summary(d: Distillation, record: WeightRecord) -> dict[str, object]:
    config, facts = d.config, d.teacher.facts
    size = format_size(height_width(config.data.image_size))
    early = early_views(config.data, total_steps=d.plan.total_steps)
    count = record.data["images"]
    sources = ", ".join(record.sources)
    images = f"{sources}: {'a stream' if count is None else f'{count:,} images'}"
    if d.held_out is not None:
        images += f" for training, {d.held_out.num_images:,} others held out"
    start = "random weights" if d.start_weight is None else d.start_weight.name
    return {
        "student": f"{config.student.arch}, from {start}",
        "teacher": f"{facts.source} ({facts.architecture}, licence {facts.license})",
        "images": images,
        "views": f"two of {size} px for each image" + (f", of {early}" if early else ""),
        "loss": f"{config.method.loss}, {config.method.targets}",
    }


def _training(
    d: Distillation, record: WeightRecord, lines: Sequence[dict[str, Any]]
) -> dict[str, object]:
    hardware, images = record.hardware, record.data["images"]
    passes = f" ({record.images_seen / images:.2g} passes)" if images else ""
    speeds = [line["images_per_s"] for line in lines]
    loss = f"{lines[0]['loss']:.3f}"
    if len(lines) > 1:
        loss += f" at first, {lines[-1]['loss']:.3f} at the end"
    return {
        "steps": f"{record.steps:,}, each with {d.config.optim.global_batch_size} images",
        "images seen": f"{record.images_seen:,}{passes}",
        "time": f"{hardware['seconds'] / 60:.1f} minutes since the last start",
        "device": f"{hardware['device']}, {hardware['processes']} process(es), "
        f"{d.config.speed.precision}",
        "speed": f"{statistics.median(speeds):.1f} images/s",
        "waiting for images": f"{100 * _data_wait(lines):.0f} % of the time",
        "loss": loss,
    }


def _situation(d: Distillation, record: WeightRecord, lines: Sequence[dict[str, Any]]) -> Situation:
    survey = d.survey
    scores = d.held_out if d.held_out is not None and d.held_out.start else None
    return Situation(
        run=str(d.folder.path),
        outcome="not measured" if scores is None else scores.compare().outcome,
        still_improving=scores is not None and scores.best_step == scores.history[-1]["step"],
        stopped_early=scores is not None and scores.stopped_early,
        num_images=record.data["images"],
        passes=record.images_seen / record.data["images"] if record.data["images"] else 0.0,
        share_of_copies=0.0 if survey is None else _share_of_copies(survey),
        data_wait=_data_wait(lines),
        on_scenes=only_scenes(d.config.data.source),
        teacher=d.config.teacher.source,
        starts_from_weights=d.start_weight is not None,
    )


def _share_of_copies(survey: Any) -> float:
    exact = survey.num_exact_copies / max(1, survey.num_compared)
    return exact + survey.num_near_copies / max(1, survey.num_sampled)


def _data_wait(lines: Sequence[dict[str, Any]]) -> float:
    return statistics.median(line["data_wait"] for line in lines)


def _metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
