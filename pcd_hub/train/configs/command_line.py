"""``RECIPE [CONFIG] [--group.field VALUE ...]`` -> a configuration, or one line and exit code 2."""

import contextlib
import difflib
import gc
import io
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import tyro

import pcd_hub
from pcd_hub.errors import ConfigError, PCDHubError, first_line, nearest
from pcd_hub.train.configs.fields import Option, as_typed, check, options, wrong_value
from pcd_hub.train.signals import StoppedRun

log = logging.getLogger("pcd_hub")

ConfigT = TypeVar("ConfigT")

_SCHEDULE = (
    *("reference-batch-size", "global-batch-size", "lr", "lr-per-256", "lr-drops", "epochs"),
    *("iterations", "momentum", "weight-decay", "warmup-iterations", "warmup-factor", "power"),
)

OLD_NAMES = {
    "--output-dir": "--run.output-dir",
    "--run.sync-batch-norm": "--optim.sync-batch-norm",
    "--run.no-sync-batch-norm": "--optim.no-sync-batch-norm",
    "--seed": "--run.seed",
    "--seeds": "--run.seeds",
    "--source": "--data.source",
    "--image-size": "--data.image-size",
    "--images": "--data.num-images",
    "--teacher": "--teacher.source",
    "--report.teacher": "--teacher.source",
    "--report.images": "--report.num-images",
    "--probe.learning-rate": "--probe.lr",
    "--data.root": "--data.source",
    "--data.train": "--data.train-split",
    "--data.val": "--data.test-split",
    "--data.val-images": "--data.test-images",
    "--data.val-annotations": "--data.test-annotations",
    "--schedule.drops": "--optim.lr-drops",
    **{f"--schedule.{name}": f"--optim.{name}" for name in _SCHEDULE},
}
"""Options of the release before, which are still taken."""


def parse(
    configs: Mapping[str, ConfigT], default: str, arguments: list[str]
) -> tuple[str, ConfigT]:
    """The named configuration (``default`` if none is named) with its overrides.

    Raises:
        ConfigError: For an unknown name or option, with the nearest known one, or a value that the
            option cannot have.
    """
    name = default
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    if name not in configs:
        raise ConfigError(
            f"no configuration '{name}'{nearest(name, configs)}; there are {', '.join(configs)}"
        )
    return name, override(configs[name], arguments)


def override(config: ConfigT, arguments: list[str]) -> ConfigT:
    """``config`` with the options of a command line.

    Raises:
        ConfigError: As :func:`parse`.
    """
    known = {flag: option for option in options(config) for flag in _flags(option)}
    arguments = [_with_known_flag(argument, known) for argument in arguments]
    changed = _by_tyro(config, arguments)
    if changed is None:
        raise _mistake(config, arguments, known)
    check(changed)
    return changed


def _flags(option: Option) -> list[str]:
    """The option's name; a switch has its opposite too."""
    group, dot, last = option.name.removeprefix("--").rpartition(".")
    return [option.name, f"--{group}{dot}no-{last}"] if option.kind is bool else [option.name]


def _with_known_flag(argument: str, known: Mapping[str, Option]) -> str:
    """``argument``; if it is a flag, with hyphens and under the name of today."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    flag = flag.replace("_", "-")
    if flag in {*known, "--help"}:
        return f"{flag}{equals}{value}"
    if (today := OLD_NAMES.get(flag, "")) in known:
        log.warning("%s is now called %s", flag, today)
        return f"{today}{equals}{value}"
    raise ConfigError(
        f"no option '{as_typed(flag)}'{_nearest_flag(flag, known)} (--help lists all)"
    )


def _nearest_flag(flag: str, known: Mapping[str, Option]) -> str:
    """The flag with the most words in common; without any, the one with the nearest spelling."""
    group, wanted = _words(flag)

    def likeness(other: str) -> tuple[int, int, bool, float]:
        its_group, words = _words(other)
        common = sum(any(_alike(word, other) for other in words) for word in wanted)
        spelling = difflib.SequenceMatcher(None, flag, other).ratio()
        return common, -len(words), its_group == group, spelling

    best = max(known, key=likeness)
    return f"; did you mean '{best}'?" if likeness(best)[0] else nearest(flag, known)


def _words(flag: str) -> tuple[str, list[str]]:
    """``--optim.lr-per-256`` as ``optim`` and the words of its last part."""
    group, _, last = flag.removeprefix("--").rpartition(".")
    return group, last.replace("learning-rate", "lr").split("-")


def _alike(word: str, other: str) -> bool:
    """Whether they are the same, or one is short for the other."""
    shorter, longer = sorted((word, other), key=len)
    return word == other or (len(shorter) > 1 and longer.startswith(shorter))


def _by_tyro(config: ConfigT, arguments: list[str]) -> ConfigT | None:
    """The changed configuration; None if tyro cannot read the arguments, which it says at length.

    ``--help`` is printed, and ends the program.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(type(config), default=config, args=arguments)
    except SystemExit as ended:
        if not ended.code:
            raise
        return None


def _mistake(config: object, arguments: list[str], known: Mapping[str, Option]) -> ConfigError:
    """The error of the first option that cannot be read by itself."""
    for flag, *values in _by_option(arguments):
        if _by_tyro(config, [flag, *values]) is not None:
            continue
        if flag not in known:
            return ConfigError(f"'{as_typed(flag)}' belongs to no option; options start with --")
        option = known[flag]
        if option.kind is bool:
            typed, switch = as_typed(tuple(values)), " or ".join(_flags(option))
            return ConfigError(f"{flag} {typed}: it takes no value; {switch}")
        return wrong_value(option, tuple(values))
    return ConfigError(f"cannot read {as_typed(tuple(arguments))}; --help lists the options")


def _by_option(arguments: list[str]) -> Iterator[list[str]]:
    """Each option with its values."""
    parts: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--"):
            parts.append(argument.split("=", maxsplit=1))
        elif parts:
            parts[-1].append(argument)
        else:
            yield [argument]
    yield from parts


def run(main: Callable[[list[str]], None]) -> None:
    """Call ``main`` with the command line.

    A user's mistake is one line on stderr and exit code 2; a run that a signal stopped says how to
    go on, and exits as the shell expects of that signal.
    """
    said, code = _ended(main)
    if code:
        # The error is gone, and with it all that its traceback held: a network that is still
        # wrapped at the very end keeps the process from exiting (launch.finish).
        gc.collect()
        print(said, file=sys.stderr)
        sys.exit(code)


def _ended(main: Callable[[list[str]], None]) -> tuple[str, int]:
    """What is left to say, and the exit code."""
    if sys.argv[1:] == ["--version"]:
        print(f"pcd_hub {pcd_hub.__version__}")
        return "", 0
    try:
        main(sys.argv[1:])
    except PCDHubError as error:
        return f"error: {error}", 2
    except StoppedRun as stopped:
        return str(stopped), stopped.exit_code
    except KeyboardInterrupt:  # before the first step, or again during one
        return "stopped by SIGINT; nothing more was saved", 128 + signal.SIGINT
    except RuntimeError as error:  # raised wherever the main process is when a worker dies
        if not str(error).startswith("DataLoader worker"):
            raise
        remedy = "give it more memory (docker run --shm-size 32g) or use --data.num-workers 0"
        return f"error: {first_line(error).rstrip(' .')}; {remedy}, and go on with --run.resume", 1
    return "", 0
