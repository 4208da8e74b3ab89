"""``pcd_hub.distill``: distil a person's images from a notebook or a script."""

import gc
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pcd_hub.errors import ConfigError, PCDHubError
from pcd_hub.models.teachers import Teacher
from pcd_hub.train import distill as recipe
from pcd_hub.train.configs.distill import DISTILL, DistillConfig
from pcd_hub.train.configs.fields import check
from pcd_hub.train.configs.files import checked_fields, with_fields
from pcd_hub.train.own_images.arguments import FOR_IMAGES
from pcd_hub.train.own_images.embedded import embedded
from pcd_hub.train.results.report import REPORT
from pcd_hub.train.signals import StoppedRun
from pcd_hub.weights.catalogue import finished_export, record_of
from pcd_hub.weights.create import create_model

log = logging.getLogger("pcd_hub")

Images = str | Path
_CALL = "pcd_hub.distill"


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A finished distillation."""

    weight: str
    """``local-dir:FOLDER``, a name for ``timm.create_model(weight, pretrained=True)``."""
    metrics: dict[str, Any]
    """Measurements by name, as in the weight's record: task, protocol, ``means`` by model ..."""
    report: Path
    """The report, a Markdown file."""
    folder: Path
    """Folder of the run, with checkpoints, metrics and pictures."""

    def model(self, **timm_arguments: Any) -> nn.Module:
        """Create the timm model with the verified weight.

        Args:
            **timm_arguments: Arguments for ``timm.create_model``, such as ``features_only=True``.
        """
        return create_model(self.weight, **timm_arguments)

    def _repr_markdown_(self) -> str:
        """Show the report at the end of a notebook's cell."""
        return self.report.read_text()


def distill(
    images: Images | Sequence[Images],
    *,
    student: str | Mapping[str, Any] = "resnet18",
    teacher: str | Mapping[str, Any] | Teacher = "quickstart",
    output_dir: Images | None = None,
    hours: float | None = None,
    **overrides: Any,
) -> Distilled:
    """Distil a teacher into a small backbone on your own images, without labels.

    This is ``pcd-hub distill IMAGES``, for notebooks and scripts: settings that you do not give are
    derived from the images, the student, the device and ``hours``. Interrupting it saves the run
    and raises ``KeyboardInterrupt`` with the call that continues it. It trains on one device; for
    several, use the command line.

    Args:
        images: Folders, files, globs, lists or data sets such as ``hf:ORG/NAME``; one or several.
        student: A timm architecture, or fields of the group ``student``.
        teacher: A teacher such as ``timm:NAME``, fields of the group ``teacher``, or a module from
            ``pcd_hub.teacher_from_module``.
        output_dir: Folder of the run. Default: ``runs/own_images``, with a number appended if that
            exists.
        hours: Length of the run.
        **overrides: Any other field that ``pcd-hub distill --help`` lists, by group:
            ``optim={"epochs": 3}`` or ``**{"optim.epochs": 3}`` for ``--optim.epochs 3``.

    Returns:
        The finished weight with its metrics and report.

    Raises:
        PCDHubError: If an argument is wrong, or the run fails for a reason that you can correct.
        KeyboardInterrupt: If you interrupt the run, which is saved.

    Example:
        >>> done = pcd_hub.distill("photos", student="resnet18", hours=2)
        >>> backbone = done.model(features_only=True)
    """
    config, given = configure(
        images,
        {"student": student, "teacher": {} if isinstance(teacher, Teacher) else teacher},
        {"output_dir": output_dir, "hours": hours},
        overrides,
    )
    with embedded():
        outcome = _run(config, given, teacher if isinstance(teacher, Teacher) else None)
    # Frees the memory of the run and its lock on the folder. Both would be kept by the traceback
    # of an error that a notebook shows.
    gc.collect()
    match outcome:
        case StoppedRun():
            raise _interrupted(outcome)
        case BaseException():
            raise outcome
        case folder:
            return _finished(folder)


def configure(
    images: Images | Sequence[Images],
    models: Mapping[str, str | Mapping[str, Any]],
    run: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> tuple[DistillConfig, frozenset[str]]:
    """Return the configuration ``own_images`` with the arguments of a call, and the given fields.

    Args:
        images: One source or several.
        models: ``student`` and ``teacher``, each as its main field or as fields of the group.
        run: Fields of the group ``run``; None if not given.
        overrides: Further fields.

    Raises:
        ConfigError: If a field is unknown, given twice or invalid.
    """
    base = DISTILL[FOR_IMAGES]
    sources = [str(each) for each in ([images] if isinstance(images, Images) else images)]
    if not sources:
        raise ConfigError(f"{_CALL}: no images are given; expected a folder, or several")
    main = {"student": "arch", "teacher": "source"}
    named = {
        "data.source": sources,
        **{
            group: {main[group]: value} if isinstance(value, str) else value
            for group, value in models.items()
        },
        **{f"run.{field}": value for field, value in run.items() if value is not None},
    }
    fields = checked_fields(base, named, _CALL)
    others = checked_fields(base, overrides, _CALL)
    if twice := sorted(fields.keys() & others.keys()):
        raise ConfigError(f"{_CALL}: {twice[0]} is given twice, expected once")
    fields |= others
    config = with_fields(base, fields)
    check(config)
    return config, frozenset(fields)


def _run(
    config: DistillConfig, given: frozenset[str], teacher: Teacher | None
) -> Path | PCDHubError | StoppedRun:
    """Return the run's folder, or the user's mistake or signal that ended it, without traceback."""
    try:
        return recipe.run(config, config_name=FOR_IMAGES, given=given, teacher=teacher).folder.path
    except (PCDHubError, StoppedRun) as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


def _interrupted(stopped: StoppedRun) -> BaseException:
    """Return the exception for a run that a signal has stopped.

    A signal other than an interrupt is passed on to the program, which may end here.
    """
    resume = f'output_dir="{stopped.folder}", run={{"resume": True}}'
    message = stopped.message(f"the same arguments and {resume}")
    if stopped.signum == signal.SIGINT:
        return KeyboardInterrupt(message)
    log.warning(message)
    signal.raise_signal(stopped.signum)
    return stopped


def _finished(folder: Path) -> Distilled:
    export = finished_export(folder)
    return Distilled(
        weight=f"local-dir:{export.absolute()}",
        metrics=record_of(export)["metrics"],
        report=folder / REPORT,
        folder=folder,
    )
