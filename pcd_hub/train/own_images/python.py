"""``pcd_hub.distill``: distil a person's images from a notebook or a script."""

import gc
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch import nn

from pcd_hub.errors import ConfigError, PCDHubError
from pcd_hub.models.teacher_sources.module import teacher_from_module
from pcd_hub.models.teachers import Teacher
from pcd_hub.train import distill as recipe
from pcd_hub.train.configs.command_line import Parsed
from pcd_hub.train.configs.distill import DISTILL, DistillConfig
from pcd_hub.train.configs.fields import check
from pcd_hub.train.configs.files import checked_fields, with_fields
from pcd_hub.train.own_images.arguments import FOR_IMAGES, parse_distill
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


@overload
def distill(
    images: Images | Sequence[Images] | None = None,
    *,
    student: str | Mapping[str, Any] | None = None,
    teacher: str | Mapping[str, Any] | nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output_dir: Images | None = None,
    hours: float | None = None,
    resume: Images | None = None,
    probe_data: Images | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Distilled: ...
@overload
def distill(
    images: Images | Sequence[Images] | None = None,
    *,
    student: list[str] | tuple[str, ...],
    teacher: str | Mapping[str, Any] | nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output_dir: Images | None = None,
    hours: float | None = None,
    resume: Images | None = None,
    probe_data: Images | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> tuple[Distilled, ...]: ...
def distill(
    images: Images | Sequence[Images] | None = None,
    *,
    student: str | list[str] | tuple[str, ...] | Mapping[str, Any] | None = None,
    teacher: str | Mapping[str, Any] | nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output_dir: Images | None = None,
    hours: float | None = None,
    resume: Images | None = None,
    probe_data: Images | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Distilled | tuple[Distilled, ...]:
    """Distil a teacher into a small backbone on your own images, without labels.

    This is ``pcd-hub distill IMAGES``, for notebooks and scripts: settings that you do not give are
    derived from the images, the student, the device and ``hours``. Interrupting it saves the run
    and raises ``KeyboardInterrupt`` with the call that continues it. It trains on one device; for
    several, use the command line.

    Args:
        images: Folders, files, globs, lists or data sets such as ``hf:ORG/NAME``; one or several.
        student: A timm architecture, or fields of the group ``student``. Default: ``resnet18``.
            A tuple of architectures is trained in one pass over the images.
        teacher: A teacher such as ``timm:NAME``, fields of the group ``teacher``, or a module that
            computes a feature map or tokens (``pcd_hub.teacher_from_module`` has more options).
            Default: ``auto``, the first reachable of the recommended teachers.
        mean: For a module: mean of each channel with which it was trained, for images in [0, 1].
        std: For a module: standard deviation of each channel.
        output_dir: Folder of the run. Default: ``runs/own_images``, with a number appended if that
            exists.
        hours: Length of the run; with ``resume``, hours to add.
        resume: Folder of a run to continue, with its images and settings.
        probe_data: Labelled images, or fields of the group ``probe_data``: the mean IoU of a linear
            probe on them is measured during the run, and compared with start and teacher.
        **overrides: Any other field that ``pcd-hub distill --help`` lists, by group:
            ``optim={"epochs": 3}`` or ``**{"optim.epochs": 3}`` for ``--optim.epochs 3``.

    Returns:
        The finished weight with its metrics and report; a tuple of them if ``student`` is one, or
        the run in ``resume`` has several students.

    Raises:
        PCDHubError: If an argument is wrong, or the run fails for a reason that you can correct.
        KeyboardInterrupt: If you interrupt the run, which is saved.

    Example:
        >>> done = pcd_hub.distill("photos", student="resnet18", hours=2)
        >>> backbone = done.model(features_only=True)
    """
    module = teacher if isinstance(teacher, nn.Module) else None
    several = isinstance(student, list | tuple)
    call = configure(
        images,
        {
            "student": ",".join(student) if isinstance(student, list | tuple) else student,
            "teacher": None if isinstance(teacher, nn.Module) else teacher,
            "probe_data": probe_data,
        },
        {"output_dir": output_dir, "hours": hours},
        overrides,
        resume=resume,
    )
    built = _teacher(module, mean, std)
    with embedded():
        outcome = _run(call, built)
    # Frees the memory of the run and its lock on the folder. Both would be kept by the traceback
    # of an error that a notebook shows.
    gc.collect()
    match outcome:
        case StoppedRun():
            raise _interrupted(outcome, is_module=module is not None)
        case BaseException():
            raise outcome
        case [folder] if not several:
            return _finished(folder)
        case folders:
            return tuple(map(_finished, folders))


def configure(
    images: Images | Sequence[Images] | None,
    named_groups: Mapping[str, Images | Mapping[str, Any] | None],
    run: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    resume: Images | None = None,
) -> Parsed[DistillConfig]:
    """Return the configuration ``own_images``, or a run's, with the arguments of a call.

    Args:
        images: One source or several.
        named_groups: ``student``, ``teacher`` and ``probe_data``, each as its main field or
            as fields of the group.
        run: Fields of the group ``run``; None if not given.
        overrides: Further fields.
        resume: Folder of a run to continue.

    Raises:
        ConfigError: If a field is unknown, given twice or invalid, or there are no images.
    """
    run = dict(run)
    if resume is not None:
        hours = run.pop("hours", None)
        added = [] if hours is None else [f"--hours={hours}"]
        base = parse_distill([f"--resume={resume}", *added])
    else:
        base = Parsed(FOR_IMAGES, DISTILL[FOR_IMAGES], frozenset())
    main = {"student": "arch", "teacher": "source", "probe_data": "source"}
    named = {
        **_sources(images, required=resume is None),
        **{
            group: {main[group]: str(value)} if isinstance(value, Images) else value
            for group, value in named_groups.items()
            if value is not None
        },
        **{f"run.{field}": value for field, value in run.items() if value is not None},
    }
    fields = checked_fields(base.config, named, _CALL)
    others = checked_fields(base.config, overrides, _CALL)
    if twice := sorted(fields.keys() & others.keys()):
        raise ConfigError(f"{_CALL}: {twice[0]} is given twice, expected once")
    fields |= others
    config = base.config
    if fields.keys() & {"optim.epochs", "run.hours", "run.add_hours"}:
        config = with_fields(config, {"run.max_steps": None})  # not the length of RUN
    config = with_fields(config, fields)
    check(config)
    return Parsed(base.name, config, base.given | fields.keys())


def _sources(images: Images | Sequence[Images] | None, *, required: bool) -> dict[str, list[str]]:
    sources = [images] if isinstance(images, Images) else list(images or ())
    if required and not sources:
        raise ConfigError(f"{_CALL}: no images are given; expected a folder, or several")
    return {"data.source": [str(each) for each in sources]} if sources else {}


def _teacher(
    module: nn.Module | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Teacher | None:
    if module is None or isinstance(module, Teacher):
        if mean is not None or std is not None:
            raise ConfigError(
                f"{_CALL}: mean and std belong to a teacher that is a module; for another use "
                'teacher={"source": ..., "mean": ..., "std": ...}'
            )
        return module
    if mean is None or std is None:
        raise ConfigError(
            f"{_CALL}: a teacher that is a module needs mean=... and std=..., the normalisation "
            "of its training images"
        )
    return teacher_from_module(module, mean=mean, std=std)


def _run(
    call: Parsed[DistillConfig], teacher: Teacher | None
) -> list[Path] | PCDHubError | StoppedRun:
    """Return each student's folder, or the mistake or signal that ended it, without traceback."""
    try:
        students = recipe.run(call.config, config_name=call.name, given=call.given, teacher=teacher)
        return [d.folder.path for d in students]
    except (PCDHubError, StoppedRun) as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


def _interrupted(stopped: StoppedRun, *, is_module: bool) -> BaseException:
    """Return the exception for a run that a signal has stopped.

    A signal other than an interrupt is passed on to the program, which may end here.
    """
    module = ", teacher=module, mean=..., std=..." if is_module else ""
    message = stopped.message(f'{_CALL}(resume="{stopped.folder}"{module})')
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
