"""Short options of a distillation's command line, which stand for longer ones."""

import itertools
from pathlib import Path
from typing import Any

from pcd_hub.data.sources.uris import is_file
from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.fields import negated
from pcd_hub.train.own_images.short_options import RESUME, SHORT_OPTIONS
from pcd_hub.train.own_images.started import changed_options, length
from pcd_hub.train.own_images.words import split_words

_SOURCE = "--data.source"
_LENGTHS = ("--run.add-hours", "--run.max-steps", "--optim.epochs")


def with_long_options(arguments: list[str]) -> list[str]:
    """Return the arguments with each short option replaced by the options it stands for.

    ``--resume RUN`` stands for RUN's configuration, the options that it was resumed with before,
    its folder and ``--run.resume``; with it, ``--hours`` adds hours. Words are the images, for a
    run whose images were moved.

    Raises:
        ConfigError: If RUN is not the folder of a run.
    """
    long = [_renamed(argument, SHORT_OPTIONS) for argument in arguments]
    rest, run = _without(RESUME, long)
    if run is None:
        return long
    folder = Path(run).expanduser()
    if not run:
        raise ConfigError(
            f"{RESUME}: expected the folder of a run after it, {RESUME} runs/own_images"
        )
    if not is_file(folder / "config.json"):
        raise ConfigError(f"{RESUME} {run}: it contains no run; expected the folder of a run")
    rest = [_renamed(argument, {"--run.hours": "--run.add-hours"}) for argument in rest]
    words, given = split_words(rest)
    flags = {flag.partition("=")[0].replace("_", "-") for flag in given}
    if words:
        flags.add(_SOURCE)
    steps = length(folder) if flags.isdisjoint(_LENGTHS) else None
    return [
        *itertools.chain.from_iterable(
            _words(name, value)
            for name, value in changed_options(folder).items()
            if flags.isdisjoint({name, negated(name)})
        ),
        f"--config={folder / 'config.json'}",
        "--run.resume",
        f"--run.output-dir={folder}",
        *([] if steps is None else [f"--run.max-steps={steps}"]),
        *rest,
    ]


def _words(name: str, value: Any) -> list[str]:
    """Return an option with its value as on a command line."""
    if isinstance(value, bool):
        return [name if value else negated(name)]
    if isinstance(value, list):
        return [name, *map(str, value)]
    return [f"{name}={value}"]


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
