"""The parser of all commands, and their help."""

import argparse
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

import pcd_hub
from pcd_hub.cli.commands import COMMANDS, RECIPES

_EPILOG = """\
--json prints the result alone on standard output, as JSON; its help names the keys. Messages and
errors go to standard error. NO_COLOR=1 turns colours off; none carries a meaning.

exit codes:
  0    done
  1    an error; one line names it and the remedy
  2    wrong usage: an unknown command or option, or a setting that cannot be used
  130  interrupted by Ctrl-C; 143 by SIGTERM. distill saves its last step and prints how to continue
  141  nobody reads the output any more, as in: pcd-hub list | head -1

examples:
  pcd-hub doctor
  pcd-hub distill photos --hours 2
  pcd-hub distill --help"""


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line and status 2, without argparse's usage."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def build_parser(
    recipe_options: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> argparse.ArgumentParser:
    """Return the parser of all commands; the recipes parse their options themselves.

    Args:
        recipe_options: Flags by recipe, for the completion of a shell.
    """
    program = _OneLineParser(
        prog="pcd-hub",
        description="Distil backbones from your images; evaluate, list, fetch, verify and "
        "publish weights.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    program.add_argument("--version", action="version", version=f"pcd_hub {pcd_hub.__version__}")
    commands = program.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, recipe in RECIPES.items():
        options = commands.add_parser(name, help=recipe.help, add_help=False)
        if name in recipe_options:
            options.add_argument("words", nargs="*")
            for flag in ("--help", "--json", *recipe_options[name]):
                options.add_argument(flag)
    for name, command in COMMANDS.items():
        options = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog="\n  ".join(("examples:", *command.examples)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(options)
    return program
