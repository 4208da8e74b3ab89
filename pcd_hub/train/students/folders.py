"""Folders of a run with several students: one for each, in the folder of the run."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.distillation.building import describe_inputs
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.launch import on_main_process
from pcd_hub.train.run_folder.folder import RunFolder, prepare_folder
from pcd_hub.train.students.configs import each_student, joint_config

log = logging.getLogger("pcd_hub")


def open_folders(
    students: Sequence[Distillation], requested: DistillConfig, *, default_name: str
) -> None:
    """Create or reopen the folder of every student; call it on every process.

    Args:
        students: The students, whose configurations are resolved.
        requested: The configuration before its defaults were resolved.
        default_name: Name of the run's folder below ``runs``, if none is configured.

    Raises:
        ConfigError: See :meth:`RunFolder.open`.
    """
    own = each_student(requested)
    if len(students) > 1:
        joint = joint_config(requested, [d.config for d in students])
        folder = on_main_process(
            students[0].accelerator, lambda: prepare_folder(joint, default_name)
        )
        for d in students:
            run = dataclasses.replace(d.config.run, output_dir=folder / d.config.student.arch)
            d.config = dataclasses.replace(d.config, run=run)
    for d, before in zip(students, own, strict=True):
        d.folder = RunFolder.open(
            d.accelerator,
            d.config,
            requested=before,
            default_name=default_name,
            inputs=describe_inputs(d.source, d.teacher, d.start_weight),
        )


def run_folder(students: Sequence[Distillation]) -> Path:
    """Return the folder of the run: that of the only student, or the one that has them all."""
    path = students[0].folder.path
    return path if len(students) == 1 else path.parent


def results(students: Sequence[Distillation]) -> list[dict[str, Any]] | None:
    """Return run folder, export and record of every student whose weight was saved, as JSON values.

    On other processes than the main one, it returns None.
    """
    if not students[0].accelerator.is_main_process:
        return None
    records = {d.folder.path / "record.json": d for d in students}
    return [
        {
            "run": str(d.folder.path),
            "export": str(d.export),
            "record": json.loads(path.read_text(encoding="utf-8")),
        }
        for path, d in records.items()
        if path.is_file()
    ]
