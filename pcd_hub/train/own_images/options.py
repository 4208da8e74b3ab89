"""Short options of a distillation's command line, which stand for longer ones."""

from pathlib import Path

from pcd_hub.data.sources.uris import is_file
from pcd_hub.errors import ConfigError
from pcd_hub.train.own_images.short_options import RESUME, SHORT_OPTIONS
from pcd_hub.train.own_images.started import length

_LENGTHS = ("--run.add-hours", "--run.max-steps", "--optim.epochs")


def with_long_options(arguments: list[str]) -> list[str]:
    """Return the arguments with each short option replaced by the options it stands for.

    ``--resume RUN`` stands for RUN's configuration, its folder and ``--run.resume``; with it,
    ``--hours`` adds hours.

    Raises:
        ConfigError: If RUN is not the folder of a run.
    """
    long = [_renamed(argument, SHORT_OPTIONS) for argument in arguments]
    rest, run = _without(RESUME, long)
    if run is None:
        return long
    folder = Path(run).expanduser()
    if not run or not is_file(folder / "config.json"):
        raise ConfigError(f"{RESUME} {run}: it contains no run; expected the folder of a run")
    rest = [_renamed(argument, {"--run.hours": "--run.add-hours"}) for argument in rest]
    flags = {argument.partition("=")[0].replace("_", "-") for argument in rest}
    steps = length(folder) if flags.isdisjoint(_LENGTHS) else None
    return [
        f"--config={folder / 'config.json'}",
        "--run.resume",
        f"--run.output-dir={folder}",
        *([] if steps is None else [f"--run.max-steps={steps}"]),
        *rest,
    ]


def _renamed(argument: str, names: dict[str, str]) -> str:
    flag, equals, value = argument.partition("=")
    return f"{names.get(flag.replace('_', '-'), flag)}{equals}{value}"


def _without(option: str, arguments: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments without an option, and its value; None if it is not there."""
    rest: list[str] = []
    value = None
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, attached = argument.partition("=")
        if flag == option:
            value = attached if equals else next(remaining, "")
        else:
            rest.append(argument)
    return rest, value
