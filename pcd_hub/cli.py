"""``pcd-hub``: the weights on this machine and on the Hub, from the command line."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import pcd_hub
from pcd_hub.errors import PCDHubError, WeightError
from pcd_hub.files.strict_json import printable
from pcd_hub.weights import store
from pcd_hub.weights.catalogue import find, list_weights, record_of
from pcd_hub.weights.hub.fetch import fetch
from pcd_hub.weights.hub.publish import finished_export, publish
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.record import WeightRecord

Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line and status 1, a mistyped one in 2."""
    given = _parser().parse_args(arguments)
    try:
        given.command(given)
    except PCDHubError as error:
        sys.exit(f"pcd-hub: {error}")
    except BrokenPipeError:  # `pcd-hub list | head`
        sys.stderr.close()


def _list(given: argparse.Namespace) -> None:
    weights = list_weights(license=given.license)
    if given.json:
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
        print("none; distil one (recipes/distill.py) or fetch one (pcd-hub fetch ORG/NAME)")


def _show(given: argparse.Namespace) -> None:
    record = WeightRecord.from_dict(record_of(_folder(given.name)))
    if given.json:
        _print_json(record.to_dict())
        return
    facts = record.to_dict()
    for key in ("name", "architecture", "created", "recipe", "steps", "images_seen", "seed"):
        print(printable(f"{key:24} {facts[key]}"))
    for key in ("model", "teacher", "data", "licenses", "code", "hardware"):
        for what, value in facts[key].items():
            print(printable(f"{key + ' ' + what:24} {value}"))
    for table in record.measurements().values():
        print(printable(f"{table.task}, {table.dataset}: {table.metric} ({table.unit})"))
        for model, mean in table.means.items():
            print(printable(f"  {model:22} {mean:8.2f}"))


def _fetch(given: argparse.Namespace) -> None:
    fetched = fetch(given.name, manifest_sha256=given.manifest_sha256)
    print(f"{fetched.lock_line}\n{fetched.folder}")


def _verify(given: argparse.Namespace) -> None:
    names = given.names or [weight.name for weight in list_weights() if weight.folder]
    bad = 0
    for name in names:
        try:
            folder = _folder(name)
            read_weight(folder, what=name)
            print(f"whole    {name}  {folder}")
        except PCDHubError as error:
            bad += 1
            print(f"DAMAGED  {error}")
    if bad:
        raise WeightError(f"{bad} of {len(names)} weights are not what they should be")


def _where(given: argparse.Namespace) -> None:
    print(_folder(given.name))


def _add(given: argparse.Namespace) -> None:
    export = finished_export(given.run)
    name = given.name or WeightRecord.from_dict(record_of(export)).name
    store.add(name, export)
    print(f"{name}  {store.home() / name}")


def _publish(given: argparse.Namespace) -> None:
    folder = None
    if given.out and not given.dry_run:
        raise WeightError("--out names the folder of a --dry-run; there is none")
    if given.dry_run:
        folder = given.out or Path("dry-run") / given.repo.rpartition("/")[2]
    done = publish(
        given.run_or_name,
        given.repo,
        private=given.private,
        public=given.public,
        license=given.license,
        teacher_license=given.teacher_license,
        data_license=given.data_license,
        license_link=given.license_link,
        dry_run=folder,
    )
    print("\n".join(done.changes) or "nothing to change")
    if done.record is None:
        if not given.out:  # a folder of our own, which is no part of a checkout
            (Path("dry-run") / ".gitignore").write_text("*\n")
        print(f"\ndry run: {done.folder} is what would be published as {done.repo}")
        return
    state = "public" if done.public else "private"
    print(f"\n{done.repo}@{done.commit} ({state}), for the list of published weights:\n")
    _print_json(asdict(done.record))


def _folder(name: str) -> Path:
    if folder := find(name):
        return folder
    held = ", ".join(store.names()) or "none"
    raise WeightError(
        f"{name} is not on this machine; {store.home()} holds {held}. "
        "`pcd-hub fetch ORG/NAME` gets one from the Hub"
    )


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line and status 2, without argparse's usage."""
        self.exit(2, f"pcd-hub: {message}; {self.prog} --help lists what there is\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="pcd-hub", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"pcd_hub {pcd_hub.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        one.set_defaults(command=command)
        return one

    one = add("list", _list, "weights that are local, fetched or published")
    one.add_argument("--license", metavar="ID", help="only weights under this licence")
    one.add_argument("--json", action="store_true")

    one = add("show", _show, "the record of one weight")
    one.add_argument("name", metavar="NAME|ORG/NAME[@REV]")
    one.add_argument("--json", action="store_true", help="all of it")

    one = add("fetch", _fetch, "get a weight from the Hub, verify it, and print what pins it")
    one.add_argument("name", metavar="NAME|ORG/NAME[@REV]")
    one.add_argument("--manifest-sha256", metavar="HEX", help="what its manifest must hash to")

    one = add("verify", _verify, "check every byte of weights on this machine (all, if none given)")
    one.add_argument("names", nargs="*", metavar="NAME|ORG/NAME[@REV]")

    one = add("where", _where, "the folder of a weight on this machine")
    one.add_argument("name", metavar="NAME|ORG/NAME[@REV]")

    one = add("add", _add, "put a finished weight into the local store")
    one.add_argument("run", metavar="RUN|EXPORT", help="the folder of a run or of its export")
    one.add_argument("--name", metavar="NAME", help="ARCH.pcd_WHAT, if not the record's name")

    one = add("publish", _publish, "put a finished weight on the Hub, as one verified commit")
    one.add_argument("run_or_name", metavar="RUN|NAME")
    one.add_argument("repo", metavar="ORG/NAME")
    visible = one.add_mutually_exclusive_group()
    visible.add_argument("--private", action="store_true", help="leave the repository private")
    visible.add_argument("--public", action="store_true", help="open one that is private")
    one.add_argument("--license", metavar="ID", help="of the weights, as apache-2.0")
    one.add_argument("--teacher-license", metavar="ID", help="of the teacher's weights")
    one.add_argument("--data-license", metavar="ID", help="of the training images")
    one.add_argument(
        "--license-link", metavar="URL", help="text of a licence the Hub does not know"
    )
    one.add_argument("--dry-run", action="store_true", help="write the folder, show the difference")
    one.add_argument("--out", type=Path, help="where a dry run writes (dry-run/NAME)")
    return parser


if __name__ == "__main__":
    main()
