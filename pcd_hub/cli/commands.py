"""The table of commands with their options. Importing it imports no torch."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import pcd_hub

Main = Callable[[list[str]], None]
"""Runs a recipe with its part of the command line."""

Run = Callable[[argparse.Namespace], None]
"""Runs a command with its options."""


def _load_distill() -> Main:
    from pcd_hub.train import distill  # noqa: PLC0415

    return distill.main


def _load_probe() -> Main:
    from pcd_hub.train.frozen import probe  # noqa: PLC0415

    return probe.main


def _load_compare() -> Main:
    from pcd_hub.train.frozen import compare  # noqa: PLC0415

    return compare.main


def _load_weights() -> Mapping[str, Run]:
    from pcd_hub.cli import weights  # noqa: PLC0415

    return weights.RUN


def _load_teachers() -> Mapping[str, Run]:
    from pcd_hub.cli import teachers  # noqa: PLC0415

    return teachers.RUN


def _load_reports() -> Mapping[str, Run]:
    from pcd_hub.cli import reports  # noqa: PLC0415

    return reports.RUN


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line and status 2, without argparse's usage."""
        self.exit(2, f"pcd-hub: {message}; see {self.prog} --help\n")


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="page to write; default: RUN/report.html, or comparison.html of several runs",
    )


def _gallery_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", help="folder that gets index.html")


def _name_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME|ORG/NAME[@REV]", help="a weight's name or repository")


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--license", metavar="ID", help="only weights with this licence")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _show_options(parser: argparse.ArgumentParser) -> None:
    _name_option(parser)
    parser.add_argument("--json", action="store_true", help="print the complete record as JSON")


def _fetch_options(parser: argparse.ArgumentParser) -> None:
    _name_option(parser)
    parser.add_argument("--manifest-sha256", metavar="HEX", help="expected sha256 of the manifest")


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME|ORG/NAME[@REV]", help="default: all")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN|EXPORT", help="folder of a run or of its export")
    parser.add_argument("--name", help="ARCH.pcd or ARCH.pcd_WHAT; default: the record's name")


def _cache_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, help="folder of the caches; default: in the store")
    parser.add_argument("--remove", metavar="NAME|all", help="remove one cache, or all of them")
    _json_option(parser)


def _publish_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_or_name", metavar="RUN|NAME", help="folder of a run, or a name in the local store")
    add("repo", metavar="ORG/NAME", help="repository on the Hub")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="keep the repository private")
    visibility.add_argument("--public", action="store_true", help="make a private one public")
    add("--license", metavar="ID", help="licence of the weights, such as apache-2.0")
    add("--teacher-license", metavar="ID", help="licence of the teacher's weights")
    add("--data-license", metavar="ID", help="licence of the training images")
    add("--start-license", metavar="ID", help="licence of the weights the training started from")
    add("--license-link", metavar="URL", help="text of a licence unknown to the Hub")
    add("--dry-run", action="store_true", help="write the folder and list the changes, no more")
    add("--out", type=Path, help="folder that a dry run writes; default: dry-run/NAME")


class _Recipe(NamedTuple):
    load: Callable[[], Main]
    """Imports the recipe, which needs the extra ``train``."""
    help: str


RECIPES = {
    "distill": _Recipe(
        _load_distill, "train a backbone on your images: pcd-hub distill DIR --hours 2"
    ),
    "probe": _Recipe(
        _load_probe, "evaluate backbones on labelled images: pcd-hub probe DIR MODEL ..."
    ),
    "compare": _Recipe(
        _load_compare, "join the tables of several evaluations: pcd-hub compare RUN ..."
    ),
}
"""Commands whose options belong to a recipe."""


class _Command(NamedTuple):
    load: Callable[[], Mapping[str, Run]]
    """Imports the functions that run this command and its neighbours."""
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]


COMMANDS = {
    "list": _Command(
        _load_weights, "list local, fetched, published and shipped weights", _list_options
    ),
    "show": _Command(_load_weights, "print the record of a weight", _show_options),
    "fetch": _Command(
        _load_weights, "download a weight, verify it and print its pin", _fetch_options
    ),
    "verify": _Command(
        _load_weights, "verify every byte of weights on this machine", _verify_options
    ),
    "where": _Command(_load_weights, "print the folder of a weight on this machine", _name_option),
    "teachers": _Command(
        _load_teachers, "print recommended teachers with their cost", _json_option
    ),
    "cache": _Command(_load_teachers, "list or remove the caches of teachers", _cache_options),
    "add": _Command(_load_weights, "save a finished weight in the local store", _add_options),
    "report": _Command(
        _load_reports,
        "write the report of a run again, or of several side by side",
        _report_options,
    ),
    "gallery": _Command(
        _load_reports, "write a page with all known weights, to compare them", _gallery_options
    ),
    "publish": _Command(_load_weights, "publish a finished weight on the Hub", _publish_options),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the recipes parse their options themselves."""
    program = _OneLineParser(
        prog="pcd-hub",
        description="Distil backbones from your images; evaluate, list, fetch, verify and "
        "publish weights.",
        allow_abbrev=False,
    )
    program.add_argument("--version", action="version", version=f"pcd_hub {pcd_hub.__version__}")
    commands = program.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, recipe in RECIPES.items():
        commands.add_parser(name, help=recipe.help, add_help=False)
    for name, (_, summary, add_options) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        add_options(command)
    return program
