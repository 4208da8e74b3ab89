"""Folders of finished runs, as a distillation leaves them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pcd_hub.report.page.run_folder import Notes, write_notes
from pcd_hub.report.run_report import Sheet
from pcd_hub.weights.record import Measurement
from tests.weights.making import record

CONFIG = {
    "teacher": {"source": "local-dir:teacher"},
    "data": {"image_size": 96, "early_image_size": None, "early_share": 0.0},
    "method": {"loss": "pixel_info_nce", "targets": "pixels"},
    "optim": {"global_batch_size": 16},
    "speed": {"precision": "bf16"},
}
PROBE = Measurement(
    task="linear segmentation probe",
    dataset="generated scenes, 10 classes",
    metric="mean IoU",
    unit="%",
    images=64,
    seeds=1,
    protocol="one linear layer",
    command="pcd-hub distill quickstart",
    subject="distilled student",
    means={"random weights": 20.0, "distilled student": 35.0, "teacher": 40.0},
)
FEATURES = Sheet(
    path="pictures/features.png",
    rows=("image", "random weights", "distilled student", "teacher"),
    columns=("a.jpg", "b.jpg"),
    images="held-out images, 32 x 32 px",
)
FIELDS = Sheet(
    path="pictures/receptive_field.png",
    rows=("",),
    columns=("random weights", "distilled student"),
)
NOTES = Notes(
    warnings=("step 3: something odd",),
    features=FEATURES,
    receptive_field=FIELDS,
    receptive_sides=(0.5, 0.25),
)


def finished_run(folder: Path, *, notes: Notes = NOTES, **changed: Any) -> Path:
    """Write the files of a finished run; ``changed`` are fields of its record."""
    changed = {"config": CONFIG, "metrics": {"probe": dataclasses.asdict(PROBE)}, **changed}
    data = {"source": "photos", "fingerprint": "x", "images": 200}
    teacher = {"source": "local-dir:teacher", "architecture": "resnet10t", "license": "mit"}
    facts = record(**{"data": data, "teacher": teacher, "model": {"parameters": 400_000}} | changed)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(facts.to_dict()))
    (folder / "config.json").write_text(json.dumps(facts.config))
    lines = [
        {"step": step, "loss": 5 - step / 10, "lr": 0.1, "images_per_s": 20.0, "data_wait": 0.25}
        for step in range(20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_notes(folder, notes)
    draw(folder / FEATURES.path, rows=4, columns=2)
    draw(folder / FIELDS.path, rows=1, columns=2)
    return folder


def draw(file: Path, *, rows: int, columns: int, side: int = 32) -> None:
    """Write a sheet of random pictures; all but those of the first row have 4 x 4 squares."""
    random = np.random.default_rng(0)
    squares = random.integers(0, 256, (4 * rows, 4 * columns, 3), np.uint8)
    sheet = squares.repeat(side // 4, 0).repeat(side // 4, 1)
    if rows > 1:
        sheet[:side] = random.integers(0, 256, (side, side * columns, 3), np.uint8)
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(sheet).save(file)
