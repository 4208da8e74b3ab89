"""The commands about one weight or all, from list to publish."""

import argparse
import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pcd_hub.cli.output import print_json
from pcd_hub.data.multiband.names import RGB
from pcd_hub.errors import MissingWeightError, PCDHubError, WeightError
from pcd_hub.files.strict_json import printable
from pcd_hub.weights import shipped, store
from pcd_hub.weights.average import average
from pcd_hub.weights.catalogue import (
    find_here,
    finished_export,
    list_weights,
    notice_of_replaced,
    record_of,
    unknown_parts,
)
from pcd_hub.weights.formats.export import export as export_to
from pcd_hub.weights.hub.fetch import fetch
from pcd_hub.weights.hub.publish import Publication, publish
from pcd_hub.weights.imported.weight import import_weights
from pcd_hub.weights.input_bands import recorded_bands
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.record import WeightRecord

log = logging.getLogger("pcd_hub")


def _list(options: argparse.Namespace) -> None:
    weights = list_weights(license=options.license)
    if options.json:
        print_json([asdict(weight) for weight in weights])
        return
    _print_notices({weight.name for weight in weights if weight.origin == "shipped"})
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
        print_json(record.to_dict())
        return
    _print_record(record)
    if unknown := unknown_parts(folder):
        print("not used, as this version of pcd_hub does not know it:")
        for part in unknown:
            print(printable(f"  {part}"))


def _print_record(record: WeightRecord) -> None:
    facts = record.to_dict()
    training = () if record.imported else ("steps", "images_seen", "seed")
    for key in ("name", "architecture", "created", "recipe", *training):
        print(printable(f"{key:24} {facts[key]}"))
    if record.imported:
        print(f"{'training':24} unknown: imported, not trained by pcd_hub")
    for key in (
        "imported",
        "model",
        "teacher",
        "start",
        "averaged",
        "data",
        "licenses",
        "code",
        "hardware",
    ):
        for what, value in facts.get(key, {}).items():
            print(printable(f"{key + ' ' + what:24} {value}"))
    for table in record.measurements().values():
        print(printable(f"{table.task}, {table.dataset}: {table.metric} ({table.unit})"))
        for model, mean in table.means.items():
            print(printable(f"  {model:22} {mean:8.2f}"))


def _fetch(options: argparse.Namespace) -> None:
    fetched = fetch(options.name, manifest_sha256=options.manifest_sha256)
    if options.json:
        print_json({**asdict(fetched), "folder": fetched.folder})
    else:
        print(f"{fetched.lock_line}\n{fetched.folder}")


def _verify(options: argparse.Namespace) -> None:
    weights = [
        (weight.name, None if weight.origin == "fetched" else weight.folder)  # by name: its pin
        for weight in list_weights()
        if weight.folder
    ]
    if options.names:
        weights = [(name, None) for name in options.names]
    checked = [_verified(name, folder) for name, folder in weights]
    if options.json:
        print_json([one for _, one in checked])
    else:
        for state, one in checked:
            print(f"{state:8} {one['error'] or '{name}  {folder}'.format(**one)}")
    if bad := sum(state != "OK" for state, _ in checked):
        raise WeightError(f"{bad} of {len(checked)} weights are damaged or missing")


def _verified(name: str, folder: Path | None) -> tuple[str, dict[str, str | None]]:
    """Verify one weight; return its state, and its name, its folder, and the error or None."""
    try:
        folder = folder or _folder(name)
        read_weight(folder, what=name)
    except PCDHubError as error:
        state = "MISSING" if isinstance(error, MissingWeightError) else "DAMAGED"
        return state, {"name": name, "folder": folder and str(folder), "error": str(error)}
    return "OK", {"name": name, "folder": str(folder), "error": None}


def _where(options: argparse.Namespace) -> None:
    folder = _folder(options.name)
    if options.json:
        print_json({"name": options.name, "folder": folder})
    else:
        print(folder)


def _add(options: argparse.Namespace) -> None:
    export = finished_export(options.run)
    name = options.name or WeightRecord.from_dict(record_of(export)).name
    if replaced := store.replace(name, export):
        log.warning("%s", store.notice_of_kept(name, replaced))
    if options.json:
        print_json({"name": name, "folder": store.folder_of(name)})
    else:
        print(f"{name}  {store.folder_of(name)}")


def _average(options: argparse.Namespace) -> None:
    done = average(options.run, options.start, share=options.share, name=options.name)
    if options.json:
        print_json(asdict(done))
        return
    start = options.start
    folder = shipped.of_architecture(done.name.partition(".")[0])
    if start == "shipped" and folder:  # no model's name
        start = f"local-dir:{folder}" if store.where(folder.name) else folder.name
    print(f"{done.name}  {done.folder}")
    if done.replaced:
        print(store.notice_of_kept(done.name, done.replaced))
    if recorded_bands(WeightRecord.from_dict(record_of(done.folder))) == RGB:
        print(f"measure it: pcd-hub probe LABELLED {done.name} {start}")


def _export(options: argparse.Namespace) -> None:
    folder = export_to(
        options.name,
        to=options.to,
        out=options.out,
        pooled=options.pooled,
        opset=options.opset,
        precision=options.precision,
        calibration=options.calibration,
        num_calibration_images=options.calibration_images,
        max_size=options.max_size,
    )
    if options.json:
        files = sorted(path.name for path in folder.iterdir())
        print_json({"name": options.name, "folder": folder, "files": files})
        return
    print(f"{folder}\n\n{(folder / 'README.md').read_text(encoding='utf-8')}", end="")


def _import(options: argparse.Namespace) -> None:
    done = import_weights(
        options.file,
        options.arch,
        name=options.name,
        license=options.license,
        mean=options.mean,
        std=options.std,
        bgr=options.bgr,
        prefix=options.prefix,
        image_size=options.image_size,
    )
    if options.json:
        print_json(asdict(done))
        return
    print(f"{done.name}  {done.folder}")
    _print_record(WeightRecord.from_dict(record_of(done.folder)))
    print(f'\nuse it: pcd_hub.create_model("{done.name}"), pcd-hub probe LABELLED {done.name}')


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
    if options.dry_run and not options.out:  # keep the default folder out of a git checkout
        (Path("dry-run") / ".gitignore").write_text("*\n")
    if options.json:
        print_json(asdict(done))
    else:
        _print_publication(done)


def _print_publication(done: Publication) -> None:
    print("\n".join(done.changes) or "nothing to change")
    if done.record is None:
        print(f"\ndry run: {done.folder} would be published as {done.repo}")
        return
    state = "public" if done.public else "private"
    print(f"\n{done.repo}@{done.commit} ({state})\n\nload it anywhere:\n")
    pinned = f"{done.repo}@{done.commit}"
    print(f'  import pcd_hub; pcd_hub.create_model("{pinned}", features_only=True)')
    print(f'  timm.create_model("hf-hub:{done.repo}", pretrained=True, features_only=True)')
    print("\nentry for pcd_hub's list of published weights:\n")
    print_json(asdict(done.record))


def _folder(name: str) -> Path:
    folder = find_here(name)
    _print_notices({name})
    return folder


def _print_notices(names: Iterable[str]) -> None:
    """Print which local weights are used instead of shipped ones; not to the standard output."""
    for name in sorted(names):
        if notice := notice_of_replaced(name):
            print(notice, file=sys.stderr)


RUN = {
    "list": _list,
    "show": _show,
    "fetch": _fetch,
    "verify": _verify,
    "where": _where,
    "add": _add,
    "average": _average,
    "export": _export,
    "import": _import,
    "publish": _publish,
}
"""The functions that run the commands, by name."""
