"""The configuration of each student of a run, and the one that they share."""

from collections.abc import Sequence

from pcd_hub.data.multiband.names import RGB, teacher_places
from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.configs.fields import options
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.results.weight import check_weight_name

_TRACKERS = {"tensorboard"}
"""Trackers of which one process can have several runs; others keep one as a global state."""


def each_student(config: DistillConfig) -> tuple[DistillConfig, ...]:
    """Return the configuration of each student, as if it were trained alone.

    Several students have the folders ``OUTPUT-DIR/ARCH`` and the weights ``ARCH.pcd[_SUFFIX]``.

    Raises:
        ConfigError: If there are several, and ``run.name`` names one weight.
    """
    architectures, run = config.student.architectures, config.run
    if len(architectures) == 1:
        return (config,)
    if run.name is not None and "." in run.name:
        suffix = run.name.partition(".")[2] or "pcd_WHAT"
        raise ConfigError(
            f"--run.name {run.name} names one weight, --student.arch {config.student.arch} needs "
            f"{len(architectures)}; use --run.name {suffix} for {architectures[0]}.{suffix} ..."
        )
    return tuple(
        with_fields(
            config,
            {
                "student.arch": architecture,
                "run.output_dir": run.output_dir and run.output_dir / architecture,
            },
        )
        for architecture in architectures
    )


def check_students(config: DistillConfig) -> tuple[str, ...]:
    """Return the name of each student's weight in the store.

    Raises:
        ConfigError: If a name is not valid, several students cannot be tracked, or the teacher has
            no bands to see.
    """
    if config.data.bands != RGB:
        teacher_places(config.data.bands, config.teacher.bands)
    others = [tracker for tracker in config.run.trackers if tracker not in _TRACKERS]
    if others and len(config.student.architectures) > 1:
        raise ConfigError(
            f"--run.trackers {others[0]}: it keeps one run for each process, --student.arch "
            f"{config.student.arch} needs several; use tensorboard, or metrics.jsonl in the folder "
            "of each student"
        )
    names = tuple(check_weight_name(one) for one in each_student(config))
    if config.run.store and config.student.weights in names:
        raise ConfigError(
            f"the run would replace its own start {config.student.weights} in the store; name its "
            "weight differently, as with --run.name pcd_2"
        )
    return names


def joint_config(config: DistillConfig, students: Sequence[DistillConfig]) -> DistillConfig:
    """Return the requested configuration with the resolved values on which all students agree."""
    first, *others = [{option.key: option.value for option in options(one)} for one in students]
    agreed = {key: value for key, value in first.items() if all(o[key] == value for o in others)}
    return with_fields(config, agreed)
