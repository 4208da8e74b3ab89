"""``RECIPE [CONFIG] [--config FILE] [--group.field VALUE ...]``: options that change a config.

A user error prints one line and exits with code 1, or 2 if it is an error of the options.
"""

import contextlib
import difflib
import gc
import inspect
import io
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import tyro

import pcd_hub
from pcd_hub.errors import ConfigError, PCDHubError, exit_code, nearest, one_line
from pcd_hub.files.standard_output import exit_if_closed, print_error
from pcd_hub.garbage_collector import keep_imported
from pcd_hub.train.configs.fields import Option, as_typed, check, options, wrong_value
from pcd_hub.train.configs.files import as_yaml, read_fields, with_fields
from pcd_hub.train.run_folder.memory_errors import explained
from pcd_hub.train.signals import StoppedRun

log = logging.getLogger("pcd_hub")

ConfigT = TypeVar("ConfigT")

_LENGTHS = ("--optim.epochs", "--optim.iterations", "--run.hours", "--run.add-hours")
"""Options that replace the max-steps of a configuration."""


class Parsed(NamedTuple, Generic[ConfigT]):
    """A configuration with the options of a command line."""

    name: str
    config: ConfigT
    given: frozenset[str]
    """The fields that the command line or its file sets, as ``group.field``."""


def parse(
    configs: Mapping[str, ConfigT], default: str, arguments: list[str]
) -> tuple[str, ConfigT]:
    """Apply a command line to a configuration; return its name and the result.

    See :func:`parse_given`.
    """
    name, config, _ = parse_given(configs, default, arguments)
    return name, config


def parse_given(
    configs: Mapping[str, ConfigT], default: str, arguments: list[str], *, usage: str = ""
) -> Parsed[ConfigT]:
    """Apply a command line to a configuration.

    The first argument may name one of ``configs``; without it, ``default`` is used. ``--config
    FILE`` overrides the named configuration; without a name, fields missing from the file take
    their defaults, and the configuration is named after the file. All other options follow.

    Args:
        configs: The configurations by name.
        default: Name of the configuration without a first argument.
        arguments: The command line.
        usage: Further lines of ``--help``.

    Raises:
        ConfigError: If a name, option or field is unknown (the message suggests the nearest one),
            a value is invalid, or a file cannot be read.
    """
    name = ""
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in configs:
            raise _unknown_config(name, configs)
    arguments, file = _config_file(arguments)
    config = configs[name or default]
    from_file = {} if file is None else read_fields(config, file)
    if file is not None:
        config = with_fields(config if name else type(config)(), from_file)
    print_it = "--print-config" in arguments
    arguments = [argument for argument in arguments if argument != "--print-config"]
    arguments = _with_known_flags(config, arguments)
    config = override(
        _without_max_steps(config, arguments),
        arguments,
        description=f"{_description(config, configs, default)}\n{usage}".rstrip(),
    )
    given = frozenset(from_file) | _given_fields(config, arguments)
    if print_it:
        print(as_yaml(config, without=getattr(config, "derived", frozenset()) - given), end="")
        sys.exit()
    return Parsed(
        name=name or (default if file is None else _name_of(Path(file))),
        config=config,
        given=given,
    )


def _given_fields(config: object, arguments: list[str]) -> frozenset[str]:
    """Return the fields that the options set, as ``group.field``."""
    known = _by_flag(config)
    flags = (argument.partition("=")[0] for argument in arguments)
    return frozenset(known[flag].key for flag in flags if flag in known)


def _without_max_steps(config: ConfigT, arguments: list[str]) -> ConfigT:
    """Return ``config`` without its max-steps if the command line sets another length.

    Otherwise a configuration with max-steps would ignore --optim.epochs or reject --run.hours.

    Raises:
        ConfigError: If it sets two lengths.
    """
    flags = {argument.partition("=")[0] for argument in arguments}
    lengths = [flag for flag in _LENGTHS if flag in flags]
    if len(lengths) > 1:
        raise ConfigError(f"{' and '.join(lengths)} both set the length; expected one of them")
    if not lengths:
        return config
    return with_fields(config, {"run.max_steps": None})


def _unknown_config(name: str, configs: Mapping[str, object]) -> ConfigError:
    if Path(name).suffix in {".json", ".yaml", ".yml"}:
        return ConfigError(f"no configuration '{as_typed(name)}'; for a file use --config {name}")
    return ConfigError(
        f"no configuration '{as_typed(name)}'{nearest(name, configs)}; expected one of "
        f"{', '.join(configs)}"
    )


def _config_file(arguments: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments without ``--config FILE``, and the file."""
    rest: list[str] = []
    files: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if flag != "--config":
            rest.append(argument)
        elif file := value if equals else next(remaining, ""):
            files.append(file)
        else:
            raise ConfigError("--config: expected a YAML or JSON file")
    if len(files) > 1:
        raise ConfigError(f"--config is given {len(files)} times, expected once")
    return rest, files[0] if files else None


def _name_of(file: Path) -> str:
    """Name a configuration after its file, or after the run's folder if a run wrote the file."""
    own = file.stem in {"config", "record"}
    return (file.absolute().parent.name if own else file.stem) or "config"


def _description(config: object, configs: Mapping[str, object], default: str) -> str:
    names = ", ".join(f"{name} (default)" if name == default else name for name in configs)
    return (
        f"{inspect.getdoc(config)}\n\n"
        f"[CONFIG]: a named configuration, as the first argument: {names}.\n"
        "--config FILE: take fields from a YAML or JSON file, such as a run's config.json.\n"
        "--print-config: print the configuration as such a file, and exit."
    )


def override(config: ConfigT, arguments: list[str], *, description: str | None = None) -> ConfigT:
    """Return ``config`` with the options of a command line.

    Args:
        config: The configuration to start from.
        arguments: Options with their values.
        description: Introduction of ``--help``. Default: the configuration's docstring.

    Raises:
        ConfigError: If an option is unknown or its value is invalid.
    """
    known = _by_flag(config)
    arguments = _with_known_flags(config, arguments)
    changed = _by_tyro(config, arguments, description)
    if changed is None:
        raise _mistake(config, arguments, known)
    check(changed)
    return changed


def _by_flag(config: object) -> dict[str, Option]:
    return {flag: option for option in options(config) for flag in option.flags}


def _with_known_flags(config: object, arguments: list[str]) -> list[str]:
    known = _by_flag(config)
    return [_with_known_flag(argument, known) for argument in arguments]


def _with_known_flag(argument: str, known: Mapping[str, Option]) -> str:
    """Return ``argument``; a flag gets hyphens."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    flag = flag.replace("_", "-")
    if flag not in {*known, "--help"}:
        raise ConfigError(
            f"no option '{as_typed(flag)}'{_nearest_flag(flag, known)} (--help lists all)"
        )
    return f"{flag}{equals}{value}"


def _nearest_flag(flag: str, known: Mapping[str, Option]) -> str:
    """Suggest the flag with the most words in common; if there is none, the most similar one."""
    group, wanted = _words(flag)

    def likeness(other: str) -> tuple[int, int, bool, float]:
        its_group, words = _words(other)
        common = sum(any(_alike(word, other) for other in words) for word in wanted)
        spelling = difflib.SequenceMatcher(None, flag, other).ratio()
        return common, -len(words), its_group == group, spelling

    best = max(known, key=likeness)
    return f"; did you mean '{best}'?" if likeness(best)[0] else nearest(flag, known)


def _words(flag: str) -> tuple[str, list[str]]:
    """Split ``--run.no-store``, or ``--no-run.store``, into ``run`` and the words of the rest."""
    group, _, last = flag.removeprefix("--").rpartition(".")
    if group.startswith("no-"):
        group, last = group.removeprefix("no-"), f"no-{last}"
    return group, last.replace("learning-rate", "lr").split("-")


def _alike(word: str, other: str) -> bool:
    """Return True if the words are equal, or one abbreviates the other."""
    shorter, longer = sorted((word, other), key=len)
    return word == other or (len(shorter) > 1 and longer.startswith(shorter))


def _by_tyro(config: ConfigT, arguments: list[str], description: str | None) -> ConfigT | None:
    """Return the changed configuration, or None if tyro cannot read the arguments.

    ``--help`` prints and exits. tyro's own error messages, which are long, are discarded.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(
                type(config),
                prog=_program(),
                default=config,
                args=arguments,
                description=description,
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        return None


def _program() -> str:
    """Return the program's name for ``usage`` in the help."""
    name = Path(sys.argv[0]).name
    is_command = name in {"pcd-hub", "pcd-hub.exe", "__main__.py"}
    return " ".join(("pcd-hub", *sys.argv[1:2])) if is_command else name


def _mistake(config: object, arguments: list[str], known: Mapping[str, Option]) -> ConfigError:
    """Return the error for the first option that tyro cannot read on its own."""
    for flag, *values in _by_option(arguments):
        if _by_tyro(config, [flag, *values], None) is not None:
            continue
        if flag not in known:
            return ConfigError(f"'{as_typed(flag)}' belongs to no option; options start with --")
        option = known[flag]
        if option.kind is bool:
            typed, switch = as_typed(tuple(values)), " or ".join(option.flags)
            return ConfigError(f"{flag} {typed}: expected no value; use {switch}")
        return wrong_value(option, tuple(values))
    return ConfigError(f"cannot read {as_typed(tuple(arguments))}; --help lists the options")


def _by_option(arguments: list[str]) -> Iterator[list[str]]:
    """Yield each option with its values."""
    parts: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--"):
            parts.append(argument.split("=", maxsplit=1))
        elif parts:
            parts[-1].append(argument)
        else:
            yield [argument]
    yield from parts


def run_main(main: Callable[[list[str]], object]) -> None:
    """Call ``main`` with the command line.

    A user error prints one line on stderr and exits with code 1, or 2 if it is an error of the
    options. A run stopped by a signal prints how to resume it and exits with the code that shells
    expect for that signal.
    """
    keep_imported()
    message, code = _call(main)
    if code:
        gc.collect()  # a network in the traceback keeps the process from exiting (launch.finish)
        print_error(message)
        sys.exit(code)


def _call(main: Callable[[list[str]], object]) -> tuple[str, int]:
    """Return the message to print at the end, and the exit code."""
    if sys.argv[1:] == ["--version"]:
        print(f"pcd_hub {pcd_hub.__version__}")
        return "", 0
    try:
        with exit_if_closed():
            main(sys.argv[1:])
    except (PCDHubError, OSError) as error:
        return f"error: {one_line(error)}", exit_code(error)
    except StoppedRun as stopped:
        return str(stopped), stopped.exit_code
    except KeyboardInterrupt:  # before the first step, or again during one
        again = "nothing more was saved; the same command starts again"
        return f"stopped by SIGINT; {again}", 128 + signal.SIGINT
    except (RuntimeError, MemoryError) as error:
        if (message := explained(error)) is None:
            raise
        return f"error: {message}", 1
    return "", 0
