"""Run one command and choose the exit code."""

import sys
from collections.abc import Callable, Sequence

from pcd_hub.cli.commands import COMMANDS, RECIPES, Main, parser
from pcd_hub.errors import PCDHubError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with one line after an error.

    The status is 1, or 2 after a usage error and for every error of distill, probe and compare.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in RECIPES:  # their options, --help included, are those of the recipe
        _run_recipe(RECIPES[words[0]].load, words[1:])
        return
    options = parser().parse_args(words)
    try:
        COMMANDS[options.command].load()[options.command](options)
    except PCDHubError as error:
        sys.exit(f"pcd-hub: {error}")
    except BrokenPipeError:  # `pcd-hub list | head`
        sys.stderr.close()


def _run_recipe(load: Callable[[], Main], arguments: list[str]) -> None:
    try:
        recipe = load()
        from pcd_hub.train.configs.command_line import run_main  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pcd_hub"):
            raise
        sys.exit(f'pcd-hub: {error}; pip install "pcd_hub[train]"')
    run_main(lambda _: recipe(arguments))
