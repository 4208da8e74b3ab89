"""``RECIPE [CONFIG] [--group.field VALUE ...]`` -> a configuration, or one line and exit code 2."""

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import tyro

from pcd_hub.errors import ConfigError, PCDHubError, first_line, nearest
from stopping import StoppedRun

ConfigT = TypeVar("ConfigT")


def parse(
    configs: Mapping[str, ConfigT], default: str, arguments: list[str]
) -> tuple[str, ConfigT]:
    """The named configuration (``default`` if none is named) with its overrides.

    Raises:
        ConfigError: For an unknown name or field, with the nearest known one.
    """
    name = default
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    if name not in configs:
        raise ConfigError(
            f"no configuration '{name}'{nearest(name, configs)}; there are {', '.join(configs)}"
        )
    flags = set(_flags(configs[name]))
    for argument in arguments:
        flag = argument.split("=", maxsplit=1)[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags | {"--help"}:
            raise ConfigError(f"no option '{flag}'{nearest(flag, flags)}; --help lists them")
    return name, tyro.cli(type(configs[name]), default=configs[name], args=arguments)


def _flags(config: object, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        name = prefix + field.name.replace("_", "-")
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{name}.")
        else:
            yield f"--{name}"
            group, _, last = name.rpartition(".")
            yield f"--{group}.no-{last}" if group else f"--no-{last}"


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
    try:
        main(sys.argv[1:])
    except PCDHubError as error:
        return f"error: {error}", 2
    except StoppedRun as stopped:
        return str(stopped), stopped.exit_code
    except RuntimeError as error:  # raised wherever the main process is when a worker dies
        if not str(error).startswith("DataLoader worker"):
            raise
        remedy = "give it more memory (docker run --shm-size 32g) or use --data.num-workers 0"
        return f"error: {first_line(error).rstrip(' .')}; {remedy}, and go on with --run.resume", 1
    return "", 0
