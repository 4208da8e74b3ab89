r"""Turn the export of a finished run into a weight that is shipped in the package.

    python scripts/ship.py RUN --license apache-2.0 --data-license cc-by-sa-4.0 \
        --teacher "NAME, supervised on DATA" --data "photographs of SOURCE" \
        --picture pca.png --pictures "photographs (AUTHORS, cc-by-sa-4.0)" --note "..."

Writes ``pcd_hub/weights/shipped/NAME/`` (or ``--out``), complete or not at all. Kernels and
matrices become float16. Vectors (norms, biases, running statistics) and integers stay as they are:
they take little space, and a variance can be too small or too large for float16. Card and manifest
are written anew. The record states the dtype, and the first pooled features of a fixed image as a
fingerprint, which tests compare. Prints what the rounding changes.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pcd_hub.errors import PCDHubError, WeightError
from pcd_hub.files.write import atomic_folder
from pcd_hub.models.tensor_files import save_tensors
from pcd_hub.weights import shipped
from pcd_hub.weights.cards.card import render_card
from pcd_hub.weights.cards.metadata import needs_import
from pcd_hub.weights.catalogue import finished_export
from pcd_hub.weights.create import build_model, golden_features
from pcd_hub.weights.export import describe
from pcd_hub.weights.hub.publishable import check_record, with_licenses
from pcd_hub.weights.layout import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from pcd_hub.weights.load import ReadWeight, read_weight
from pcd_hub.weights.local_paths import without_local_paths
from pcd_hub.weights.manifest import read_manifest
from pcd_hub.weights.store import check_name

FEATURE_TOLERANCE = 2e-3
"""Largest change of a feature by the rounding, relative to the largest feature. Four distilled
ResNet-18 had 1.3e-4 to 2.2e-4; with vectors in float16 too, 3.4e-4 to 7.8e-4."""
ROUNDING = 2**-11
"""Largest change of a value by the rounding, relative to the largest value of its tensor."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a person adds to the card."""

    teacher: str = ""
    """Teacher and its training, in front of the source that the record has."""
    data: str = ""
    """Training images, in front of the source that the record has."""
    pictures: str = ""
    """Images that the pictures show, with their licence."""
    notes: tuple[str, ...] = ()
    """Sentences on limits and what to compare with."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A written weight, and what the rounding to float16 has changed."""

    folder: Path
    num_bytes: int
    float32: tuple[str, ...]
    """Kernels and matrices that float16 cannot hold, and that stay as they are."""
    feature_change: float
    """Largest change of a golden feature, relative to the largest one."""


def to_float16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with float32 kernels and matrices rounded to float16.

    A tensor keeps its dtype if the rounding would change it by more than :data:`ROUNDING`: if its
    largest value is above 65504, or so small that float16 has fewer digits for it.
    """
    return {name: _rounded(tensor) for name, tensor in tensors.items()}


def _rounded(tensor: Tensor) -> Tensor:
    if tensor.dim() < 2 or tensor.dtype != torch.float32 or not tensor.numel():
        return tensor
    half = tensor.half()
    change = (half.float() - tensor).abs().max()
    return half if change <= ROUNDING * tensor.abs().max() else tensor


def ship(
    run: str | Path,
    out: Path | None = None,
    *,
    licenses: dict[str, str | None] | None = None,
    license_link: str | None = None,
    name: str | None = None,
    pictures: Sequence[Path] = (),
    texts: Texts | None = None,
) -> Shipped:
    """Write a weight for the package, complete or not at all.

    Args:
        run: A run's folder, an export's folder, or the name of a weight.
        out: The new folder; ``pcd_hub/weights/shipped/NAME`` if not given.
        licenses: Licences that the record does not state: weights, teacher, data, start.
        license_link: URL of the licence's text, if the Hub has no identifier for it.
        name: Name of the weight; the record's if not given.
        pictures: PNG files for the card; one replaces the export's of the same name.
        texts: What the card says besides the record.

    Raises:
        WeightError: If the export is damaged, its record is incomplete, the folder exists, or the
            rounding changes the features by more than :data:`FEATURE_TOLERANCE`.
    """
    export = finished_export(run)
    weight = _described(read_weight(export), name, texts or Texts())
    check_record(weight.record)
    parts = dict.fromkeys(("weights", "teacher", "data", "start")) | (licenses or {})
    record = without_local_paths(with_licenses(weight.record, parts, license_link))
    out = out or shipped.FOLDER / record.name
    if out.exists():
        raise WeightError(f"{out} exists already; remove it, or name another folder with --out")
    tensors = to_float16(weight.tensors)
    features = _features(weight._replace(tensors=tensors))
    change = _feature_change(features, _features(weight))
    if not change <= FEATURE_TOLERANCE:
        raise WeightError(
            f"float16 changes the features of {record.name} by {change:.1e} of the largest, "
            f"expected at most {FEATURE_TOLERANCE:.0e}; ship it in float32"
        )
    facts = {**record.model, "stored_as": "float16", "features": list(features)}
    record = replace(record, model=facts)
    with atomic_folder(out) as draft:
        _copy_pictures(export, pictures, draft)
        save_tensors(tensors, draft / WEIGHTS_FILE)
        describe(draft, record, weight.config, license_link=license_link, is_shipped=True)
        check(draft)
    return Shipped(
        folder=out,
        num_bytes=sum(path.stat().st_size for path in out.iterdir()),
        float32=tuple(n for n, t in tensors.items() if t.dim() > 1 and t.dtype == torch.float32),
        feature_change=change,
    )


def check(folder: Path) -> None:
    """Check that a shipped weight loads as float32, and agrees with its record.

    Raises:
        WeightError: If a file is damaged, pcd_hub or plain timm loads other values, or features or
            card differ from the record's.
    """
    weight = read_weight(folder)
    models: list[nn.Module] = [build_model(weight)]
    if not needs_import(weight.record.architecture):
        models.append(timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0))
    for model in models:
        for key, value in model.state_dict().items():
            expected = weight.tensors[key]
            expected = expected.float() if expected.is_floating_point() else expected
            if value.dtype != expected.dtype or not torch.equal(value, expected):
                raise WeightError(f"{folder} loads another {key} than it holds; please report this")
    change = _feature_change(_features(weight), tuple(weight.record.model["features"]))
    if not change <= FEATURE_TOLERANCE:
        raise WeightError(f"{folder} has other features than its record: {change:.1e} apart")
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    link = card.partition("Text of the weights' licence: <")[2].partition(">")[0] or None
    others = [entry for entry in read_manifest(folder)["files"] if entry["path"] != CARD_FILE]
    if card != render_card(weight.record, files=others, license_link=link, is_shipped=True):
        raise WeightError(f"{folder / CARD_FILE} is not rendered from the record")


def _described(weight: ReadWeight, name: str | None, texts: Texts) -> ReadWeight:
    """Return the weight with its name and the texts for its card."""
    record = weight.record
    name = check_name(name or record.name)
    architecture, _, tag = name.partition(".")
    if architecture != record.architecture:
        raise WeightError(
            f"--name {name}: expected {record.architecture}.pcd or {record.architecture}.pcd_WHAT"
        )
    record = replace(
        record,
        name=name,
        teacher=record.teacher | ({"description": texts.teacher} if texts.teacher else {}),
        data=record.data | ({"description": texts.data} if texts.data else {}),
        notes=texts.notes or record.notes,
        pictures=texts.pictures or record.pictures,
    )
    cfg = {**weight.config["pretrained_cfg"], "tag": tag}
    return weight._replace(record=record, config={**weight.config, "pretrained_cfg": cfg})


def _features(weight: ReadWeight) -> tuple[float, ...]:
    in_chans = weight.config.get("model_args", {}).get("in_chans", 3)
    size: Any = weight.record.model["image_size"]
    return golden_features(build_model(weight), size, in_chans=in_chans)


def _feature_change(found: tuple[float, ...], expected: tuple[float, ...]) -> float:
    one, other = torch.tensor(found), torch.tensor(expected)
    return float((one - other).abs().max() / other.abs().max())


def _copy_pictures(export: Path, pictures: Sequence[Path], draft: Path) -> None:
    """Copy what the export holds besides weights and descriptions, and the new pictures."""
    for entry in read_manifest(export)["files"]:
        if (name := entry["path"]) not in {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, MANIFEST_FILE}:
            shutil.copyfile(export / name, draft / name)
    for picture in pictures:
        shutil.copyfile(picture, draft / picture.name)


def main(arguments: list[str] | None = None) -> int:
    """Ship, or print a one-line error; return the exit status 0 or 2."""
    given = _parser().parse_args(arguments)
    licenses = {what: getattr(given, f"{what}_license") for what in ("teacher", "data", "start")}
    try:
        done = ship(
            given.run,
            given.out,
            licenses={"weights": given.license, **licenses},
            license_link=given.license_link,
            name=given.name,
            pictures=given.picture,
            texts=Texts(
                teacher=given.teacher,
                data=given.data,
                pictures=given.pictures,
                notes=tuple(given.note),
            ),
        )
    except (PCDHubError, OSError) as error:
        print(f"ship.py: {error}", file=sys.stderr)
        return 2
    kept = f"; kept in float32: {', '.join(done.float32)}" if done.float32 else ""
    print(
        f"{done.folder}: {done.num_bytes / 1e6:.1f} MB; float16 changes the features by "
        f"{done.feature_change:.1e} of the largest{kept}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run or of its export, or the name of a weight")
    add("--out", type=Path, help="new folder; default: in pcd_hub/weights/shipped")
    add("--name", help="ARCH.pcd or ARCH.pcd_WHAT; default: the record's name")
    add("--license", metavar="ID", help="licence of the weights, such as apache-2.0")
    add("--teacher-license", metavar="ID", help="licence of the teacher's weights")
    add("--data-license", metavar="ID", help="licence of the training images")
    add("--start-license", metavar="ID", help="licence of the weights the training started from")
    add("--license-link", metavar="URL", help="text of a licence unknown to the Hub")
    add("--teacher", default="", metavar="TEXT", help="teacher and its training, for the card")
    add("--data", default="", metavar="TEXT", help="training images, for the card")
    add("--picture", type=Path, action="append", default=[], help="PNG for the card; repeatable")
    add("--pictures", default="", metavar="TEXT", help="images that the pictures show, licence")
    add("--note", action="append", default=[], metavar="TEXT", help="sentence for the card")
    return parser


if __name__ == "__main__":
    sys.exit(main())
