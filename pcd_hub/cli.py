"""Distil backbones from your images; evaluate, list, fetch, verify and publish weights."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, NoReturn

import pcd_hub
from pcd_hub.errors import PCDHubError, WeightError
from pcd_hub.files.strict_json import printable
from pcd_hub.models.teacher_sources import catalogue as teacher_catalogue
from pcd_hub.train.teacher.cache.folders import default_place, list_caches, remove_cache
from pcd_hub.weights import store
from pcd_hub.weights.catalogue import (
    find,
    finished_export,
    list_weights,
    record_of,
    unknown_parts,
)
from pcd_hub.weights.hub.fetch import fetch
from pcd_hub.weights.hub.publish import publish
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.record import WeightRecord

_Main = Callable[[list[str]], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with one line after an error.

    The status is 1, or 2 after a usage error and for every error of distill, probe and compare.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in _RECIPES:  # their options, --help included, are those of the recipe
        _run_recipe(_RECIPES[words[0]].load, words[1:])
        return
    options = _parser().parse_args(words)
    try:
        options.command(options)
    except PCDHubError as error:
        sys.exit(f"pcd-hub: {error}")
    except BrokenPipeError:  # `pcd-hub list | head`
        sys.stderr.close()


def _run_recipe(load: Callable[[], _Main], arguments: list[str]) -> None:
    try:
        recipe = load()
        from pcd_hub.train.configs.command_line import run_main  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pcd_hub"):
            raise
        sys.exit(f'pcd-hub: {error}; pip install "pcd_hub[train]"')
    run_main(lambda _: recipe(arguments))


def _load_distill() -> _Main:
    from pcd_hub.train import distill  # noqa: PLC0415

    return distill.main


def _load_probe() -> _Main:
    from pcd_hub.train.frozen import probe  # noqa: PLC0415

    return probe.main


def _load_compare() -> _Main:
    from pcd_hub.train.frozen import compare  # noqa: PLC0415

    return compare.main


def _list(options: argparse.Namespace) -> None:
    weights = list_weights(license=options.license)
    if options.json:
        _print_json([asdict(weight) for weight in weights])
        return
    rows = [("WEIGHT", "FROM", "LICENCE", "PARAMETERS", "FOLDER")]
    for weight in weights:
        size = f"{weight.parameters / 1e6:.1f} M" if weight.parameters else "?"
        where = str(weight.folder) if weight.folder else "not fetched"
        rows.append((weight.name, weight.origin, weight.license, size, where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    if not weights:
        print("no weights; distil one (pcd-hub distill) or fetch one (pcd-hub fetch ORG/NAME)")


def _show(options: argparse.Namespace) -> None:
    folder = _folder(options.name)
    record = WeightRecord.from_dict(record_of(folder))
    if options.json:
        _print_json(record.to_dict())
        return
    _print_record(record)
    if unknown := unknown_parts(folder):
        print("not used, as this version of pcd_hub does not know it:")
        for part in unknown:
            print(printable(f"  {part}"))


def _print_record(record: WeightRecord) -> None:
    facts = record.to_dict()
    for key in ("name", "architecture", "created", "recipe", "steps", "images_seen", "seed"):
        print(printable(f"{key:24} {facts[key]}"))
    for key in ("model", "teacher", "start", "data", "licenses", "code", "hardware"):
        for what, value in facts[key].items():
            print(printable(f"{key + ' ' + what:24} {value}"))
    for table in record.measurements().values():
        print(printable(f"{table.task}, {table.dataset}: {table.metric} ({table.unit})"))
        for model, mean in table.means.items():
            print(printable(f"  {model:22} {mean:8.2f}"))


def _fetch(options: argparse.Namespace) -> None:
    fetched = fetch(options.name, manifest_sha256=options.manifest_sha256)
    print(f"{fetched.lock_line}\n{fetched.folder}")


def _verify(options: argparse.Namespace) -> None:
    names = options.names or [weight.name for weight in list_weights() if weight.folder]
    bad = 0
    for name in names:
        try:
            folder = _folder(name)
            read_weight(folder, what=name)
            print(f"OK       {name}  {folder}")
        except PCDHubError as error:
            bad += 1
            print(f"DAMAGED  {error}")
    if bad:
        raise WeightError(f"{bad} of {len(names)} weights are damaged or missing")


def _where(options: argparse.Namespace) -> None:
    print(_folder(options.name))


def _add(options: argparse.Namespace) -> None:
    export = finished_export(options.run)
    name = options.name or WeightRecord.from_dict(record_of(export)).name
    store.add(name, export)
    print(f"{name}  {store.home() / name}")


def _report(options: argparse.Namespace) -> None:
    from pcd_hub.report.page.write import report_runs  # noqa: PLC0415

    print(report_runs(options.runs, options.output))


def _publish(options: argparse.Namespace) -> None:
    folder = None
    if options.out and not options.dry_run:
        raise WeightError("--out requires --dry-run")
    if options.dry_run:
        folder = options.out or Path("dry-run") / options.repo.rpartition("/")[2]
    done = publish(
        options.run_or_name,
        options.repo,
        private=options.private,
        public=options.public,
        license=options.license,
        teacher_license=options.teacher_license,
        data_license=options.data_license,
        start_license=options.start_license,
        license_link=options.license_link,
        dry_run=folder,
    )
    print("\n".join(done.changes) or "nothing to change")
    if done.record is None:
        if not options.out:  # keep the default folder out of a git checkout
            (Path("dry-run") / ".gitignore").write_text("*\n")
        print(f"\ndry run: {done.folder} would be published as {done.repo}")
        return
    state = "public" if done.public else "private"
    print(f"\n{done.repo}@{done.commit} ({state}); entry for the list of published weights:\n")
    _print_json(asdict(done.record))


def _teachers(options: argparse.Namespace) -> None:
    if options.json:
        _print_json([teacher_catalogue.facts(one) for one in teacher_catalogue.TEACHERS])
    else:
        print(teacher_catalogue.as_text())


def _cache(options: argparse.Namespace) -> None:
    place = options.dir or default_place()
    caches = list_caches(place)
    if options.remove is not None:
        caches = remove_cache(place, options.remove)
    if options.json:
        _print_json([asdict(cache) for cache in caches])
        return
    for cache in caches:
        state = "removed" if options.remove is not None else f"{cache.complete:.0%} full"
        print(
            f"{cache.path.name}  {cache.num_bytes / 1e9:.2f} GB  {cache.teacher}  "
            f"{cache.images:,} images  {state}"
        )
    if not caches:
        print(f"no caches of a teacher in {place}")


def _folder(name: str) -> Path:
    if folder := find(name):
        return folder
    held = ", ".join(store.names()) or "none"
    raise WeightError(
        f"{name} is not on this machine; {store.home()} holds {held}. Run `pcd-hub fetch ORG/NAME` "
        "to get one from the Hub"
    )


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line and status 2, without argparse's usage."""
        self.exit(2, f"pcd-hub: {message}; see {self.prog} --help\n")


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


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/report.html")


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
    load: Callable[[], _Main]
    """Imports the recipe, which needs the extra ``train``."""
    help: str


_RECIPES = {
    "distill": _Recipe(
        _load_distill, "train a backbone on your images: pcd-hub distill DIR --hours 2"
    ),
    "probe": _Recipe(
        _load_probe, "evaluate backbones on labelled images: pcd-hub probe DIR MODEL ..."
    ),
    "compare": _Recipe(_load_compare, "join tables of evaluations: pcd-hub compare RUN ..."),
}


class _Command(NamedTuple):
    run: Callable[[argparse.Namespace], None]
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]


_COMMANDS = {
    "list": _Command(_list, "list local, fetched and published weights", _list_options),
    "show": _Command(_show, "print the record of a weight", _show_options),
    "fetch": _Command(_fetch, "download a weight, verify it and print its pin", _fetch_options),
    "verify": _Command(_verify, "verify every byte of weights on this machine", _verify_options),
    "where": _Command(_where, "print the folder of a weight on this machine", _name_option),
    "teachers": _Command(_teachers, "print recommended teachers with their cost", _json_option),
    "cache": _Command(_cache, "list or remove the caches of teachers", _cache_options),
    "add": _Command(_add, "save a finished weight in the local store", _add_options),
    "report": _Command(_report, "write a run's report again, or compare runs", _report_options),
    "publish": _Command(_publish, "publish a finished weight on the Hub", _publish_options),
}


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="pcd-hub", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"pcd_hub {pcd_hub.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, recipe in _RECIPES.items():
        commands.add_parser(name, help=recipe.help, add_help=False)
    for name, (run, summary, add_options) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        command.set_defaults(command=run)
        add_options(command)
    return parser


if __name__ == "__main__":
    main()
