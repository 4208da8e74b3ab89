"""Save a distilled weight: probe, figures, record, export and local store."""

import dataclasses
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pcd_hub.data.multiband.names import weight_suffix
from pcd_hub.errors import ConfigError, StudentError, WeightError
from pcd_hub.files.quoted import in_quotes
from pcd_hub.image_size import format_size
from pcd_hub.models.entries import STOCK_ARCHITECTURES
from pcd_hub.models.teacher_sources.module import SCHEME
from pcd_hub.models.teachers import Teacher
from pcd_hub.report.curves import save_training_curve
from pcd_hub.report.page.content import verdict
from pcd_hub.report.page.write import PAGE
from pcd_hub.report.scene_probe import probe_backbones
from pcd_hub.train.batches import describe_data, only_scenes
from pcd_hub.train.configs.distill import DISTILL, DistillConfig
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.held_out.result import held_out_measurements, warn_if_worse
from pcd_hub.train.probe_data.result import probe_measurement
from pcd_hub.train.results.compared import SUBJECT, compared_models
from pcd_hub.train.results.pictures import draw_feature_maps, draw_own_images
from pcd_hub.train.results.report import save_report
from pcd_hub.weights import store
from pcd_hub.weights.catalogue import finished_export, record_of
from pcd_hub.weights.export import check_finite, export_weight
from pcd_hub.weights.manifest import read_manifest, verify, write_json
from pcd_hub.weights.record import WeightRecord

log = logging.getLogger("pcd_hub")

CARD_PICTURES = ("pca.png", "probe.png", "training.png")
"""Pictures that are published with the weight; none of them shows a training image."""
_NAME_OF_SCENES = "pcd_quickstart"
"""Name of the weights of generated scenes, after the architecture."""


def save_weight(d: Distillation, weight_name: str, *, warnings: Sequence[str] = ()) -> None:
    """Probe, record, export and store the student, write the report, and print how to load it.

    Args:
        d: The trained distillation.
        weight_name: Name of the weight.
        warnings: The warnings of the run, for its report.
    """
    if d.held_out is not None:
        d.held_out.choose()
        warn_if_worse(d.held_out)
    with torch.compiler.set_stance("force_eager"):  # new shapes, each used only a few times
        before = exported_before(d, weight_name)
        d.export = export = before or export_student(d, weight_name)
        record = WeightRecord.from_dict(raw := read_manifest(export)["record"])
        write_json(d.folder.path / "record.json", raw)
        page = d.folder.path / PAGE
        notes = None if before and page.is_file() else draw_own_images(d)
    # The report comes first: a store that rejects the weight must not lose it. A page that exists
    # has the warnings of the training, which a resumption after its end lacks.
    report = page if notes is None else save_report(d.folder.path, notes, warnings=warnings)
    is_stored = d.config.run.store and not (before and stored_later(weight_name, record))
    if is_stored and (replaced := add_to_store(weight_name, export)):
        print(f"\n{store.notice_of_kept(weight_name, replaced)}")
    print(f"\n{verdict(record, run=str(d.folder.path))}\nreport: {report or 'not written'}")
    if is_stored:
        print(f"stored as {weight_name} in {store.home()}")
    elif d.config.run.store:
        print(
            f"{weight_name} is a later weight; `pcd-hub add {export} --name NAME` stores this one"
        )
    print("\nload it anywhere:\n")
    for line in loading_lines(weight_name, export, is_stored=is_stored):
        print(f"  {line}")


def stored_later(weight_name: str, record: WeightRecord) -> bool:
    """Return whether the store has a weight of this name that was made after this one."""
    try:
        folder = store.where(weight_name)
        return folder is not None and record_of(folder)["created"] > record.created
    except WeightError:  # damaged: to be replaced
        return False


def loading_lines(weight_name: str, export: Path, *, is_stored: bool) -> list[str]:
    """Return lines of Python that load the weight, the shortest first."""
    options = "pretrained=True, features_only=True"
    # The export comes last: a later run may replace the weight in the store.
    folders = [store.home() / weight_name] if is_stored else []
    folders.append(export.absolute())
    lines = [f'timm.create_model("local-dir:{in_quotes(folder)}", {options})' for folder in folders]
    if not is_stored:
        return lines
    if weight_name in {f"{arch}.pcd" for arch in (*STOCK_ARCHITECTURES, "resnet18_mhsa")}:
        first = f'import pcd_hub, timm; timm.create_model("{weight_name}", {options})'
    else:  # timm knows the tag pcd alone
        first = f'import pcd_hub; pcd_hub.create_model("{weight_name}", features_only=True)'
    return [first, *lines]


def exported_before(d: Distillation, weight_name: str) -> Path | None:
    """Return the export of a run that is resumed after its end, unless a setting has changed."""
    try:
        export = finished_export(d.folder.path)
        verify(export)
        record = record_of(export)
    except WeightError:
        return None
    config = json.loads(json.dumps(d.folder.recorded_config()))
    if (record["name"], record["steps"], record["config"]) != (
        weight_name,
        d.exported_step,
        config,
    ):
        return None
    log.info("%s is complete; to train longer, add --hours or --run.max-steps", export)
    return export


def export_student(d: Distillation, weight_name: str) -> Path:
    """Measure the student and export it into the run's folder; return the export's folder."""
    folder = d.folder.path
    pictures = folder / "pictures"
    state = {key: value.cpu() for key, value in d.student.state_dict().items()}
    check_finite(state)
    metrics = measure_on_scenes(d, pictures / "probe.png")
    if d.held_out is not None:
        metrics |= held_out_measurements(
            d.held_out,
            teacher=d.teacher.facts.source,
            image_size=format_size(d.config.data.image_size),
            command=command(d),
        )
    if d.probe_data is not None:
        metrics |= probe_measurement(d, d.probe_data, command=command(d))
    log.info("drawing the figures and exporting the weight")
    if d.bands.is_rgb:
        draw_feature_maps(d, pictures / "pca.png")
    else:
        log.info("no figure of feature maps: the generated scenes are RGB")
    save_training_curve(pictures / "training.png", folder / "metrics.jsonl")
    return export_weight(
        state,
        build_record(d, weight_name, metrics),
        _new_export_folder(folder),
        image_size=d.config.data.image_size,
        bands=d.bands,
        pictures=[path for path in map(pictures.joinpath, CARD_PICTURES) if path.exists()],
    )


def add_to_store(weight_name: str, export: Path) -> Path | None:
    """Add the weight to the local store; return the folder of the weight that it replaced, if any.

    Raises:
        WeightError: If the store rejects it; the weight is complete in ``export``.
    """
    try:
        return store.replace(weight_name, export)
    except WeightError as error:
        raise WeightError(
            f"the weight is complete in {export}, but cannot be added to the store: {error}; "
            f"add it with `pcd-hub add {export} --name {weight_name}`"
        ) from error


def _new_export_folder(folder: Path) -> Path:
    """Return ``export``, or the next free ``export-2`` ...: a resumed run may finish twice."""
    names = itertools.chain(["export"], (f"export-{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.joinpath, names) if not path.exists())


def measure_on_scenes(d: Distillation, picture: Path) -> dict[str, Any]:
    """Probe as configured; a backbone that cannot take the scenes has no such measurement."""
    if not d.config.probe_scenes:
        return {}
    if not d.bands.is_rgb:
        log.info("no linear probe on generated scenes: they are RGB")
        return {}
    try:
        return probe(d, picture)
    except StudentError as error:
        log.warning("no linear probe on generated scenes: %s", error)
        return {}


def probe(d: Distillation, picture: Path) -> dict[str, Any]:
    """Compare start, student and teacher by a linear probe on generated scenes."""
    backbones = compared_models(d)
    log.info(
        "closing measurement: linear probe of %s on %d generated scenes",
        ", ".join(backbone.name for backbone in backbones),
        2 * d.config.probe_scenes,
    )
    return {
        "scene_probe": probe_backbones(
            backbones,
            subject=SUBJECT,
            num_scenes=d.config.probe_scenes,
            picture=picture,
            command=command(d),
        )
    }


def command(d: Distillation) -> str:
    """Return how a measurement of the run is repeated."""
    return f"{recipe(d)}, with the configuration of the record"


def recipe(d: Distillation) -> str:
    """Return the command that repeats the run with the installed package, or the call."""
    if d.teacher.facts.source.startswith(f"{SCHEME}:"):
        return "pcd_hub.distill(teacher=module)"
    named = d.config_name in DISTILL and not DISTILL[d.config_name].derive
    name = d.config_name if named else "--config config.json"
    return f"pcd-hub distill {name}"


def build_record(d: Distillation, weight_name: str, metrics: dict[str, Any]) -> WeightRecord:
    """Build the record of the weight: its provenance and measurements."""
    config = d.config
    return WeightRecord(
        name=weight_name,
        architecture=config.student.arch,
        recipe=recipe(d),
        config=d.folder.recorded_config(),
        teacher=describe_teacher(d.teacher),
        data=describe_data(d.source, config.data, d.folder.inputs["data"]),
        steps=d.exported_step,
        images_seen=d.exported_step * config.optim.global_batch_size,
        seed=config.run.seed,
        start=d.start_weight.to_dict() if d.start_weight else {},
        licenses={
            "code": "apache-2.0",
            "weights": "not stated",
            "teacher": d.teacher.facts.license,
            **({"start": d.start_weight.license} if d.start_weight else {}),
            "data": "apache-2.0" if only_scenes(config.data.source) else "not stated",
        },
        untrained=d.untrained,
        verdicts=tuple(d.early_verdict.history) if d.early_verdict else (),
        held_out={} if d.held_out is None else d.held_out.describe(),
        metrics=metrics,
        **d.folder.provenance(),
    )


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """Return the teacher's provenance, with its warnings if there are any."""
    facts = dataclasses.asdict(teacher.facts)
    return facts | ({"warnings": list(teacher.warnings)} if teacher.warnings else {})


def check_weight_name(config: DistillConfig) -> str:
    """Return the weight's name in the store, which depends on the bands unless it is given.

    A student of generated scenes never gets the name ``ARCH.pcd`` unless it is given: that is the
    name of weights for photographs, and of the shipped ones.

    Raises:
        ConfigError: If its architecture is not the student's.
    """
    scenes = config.data.source and only_scenes(config.data.source)
    name = config.run.name or (_NAME_OF_SCENES if scenes else "pcd")
    if config.run.name is None or name in {one.run.name for one in DISTILL.values()}:
        name += weight_suffix(config.data.bands)
    if "." not in name and name.startswith("pcd"):
        name = f"{config.student.arch}.{name}"
    name = store.check_name(name)
    if name.partition(".")[0] != config.student.arch:
        raise ConfigError(
            f"--run.name {name} names another architecture than --student.arch "
            f"{config.student.arch}; use {config.student.arch}.pcd_WHAT"
        )
    return name
