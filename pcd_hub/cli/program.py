"""Run one command and choose the exit code."""

import contextlib
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import pcd_hub
from pcd_hub import garbage_collector
from pcd_hub.cli.commands import COMMANDS, RECIPES, Main
from pcd_hub.cli.output import print_json
from pcd_hub.cli.parser import build_parser
from pcd_hub.errors import PCDHubError, exit_code, one_line, pip_install
from pcd_hub.files.standard_output import exit_if_closed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with one line on stderr after an error.

    The exit codes are those of ``pcd-hub --help``.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with exit_if_closed():
            _run(words)
    except (PCDHubError, OSError) as error:
        _exit(f"error: {one_line(error)}", exit_code(error))
    except KeyboardInterrupt:
        _exit("interrupted; the same command starts again", 128 + signal.SIGINT)


def _exit(message: str, code: int) -> NoReturn:
    if code == 1:
        sys.exit(message)  # prints it and exits with 1
    print(message, file=sys.stderr)
    sys.exit(code)


def _run(words: list[str]) -> None:
    if words and words[0] in RECIPES:  # their options, --help included, are those of the recipe
        _run_recipe(RECIPES[words[0]].load, words[1:])
        return
    options = build_parser().parse_args(words)
    command = COMMANDS[options.command]
    with garbage_collector.paused():
        if command.needs_torch:
            _load_package()
        run = command.load()[options.command]
        garbage_collector.keep_imported()
    run(options)


def _load_package() -> None:
    """Import the public names and register the timm entries, which starting has left out."""
    if "register_entries" not in vars(pcd_hub):
        importlib.reload(pcd_hub)


def _run_recipe(load: Callable[[], Main], arguments: list[str]) -> None:
    with garbage_collector.paused():
        _load_package()
        try:
            recipe = load()
            from pcd_hub.train.configs.command_line import run_main  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("pcd_hub"):
                raise
            sys.exit(f"error: {error}; {pip_install('train')}")
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]

    def run(_: list[str]) -> None:
        if as_json:
            with contextlib.redirect_stdout(sys.stderr):
                result = recipe(arguments)
            print_json(result)
        else:
            recipe(arguments)

    run_main(run)
