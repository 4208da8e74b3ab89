"""List and find weights: local, fetched, published and shipped."""

import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pcd_hub.data.sources.files import list_subfolders
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import MissingWeightError, PCDHubError, WeightError, nearest
from pcd_hub.weights import shipped, store
from pcd_hub.weights.hub.fetch import fetched_folder, fetched_folders
from pcd_hub.weights.hub.published import published_weights, reference_of
from pcd_hub.weights.layout import CONFIG_FILE, MANIFEST_FILE
from pcd_hub.weights.manifest import read_listed, read_manifest, weights_sha256
from pcd_hub.weights.record import NOT_STATED, WeightRecord
from pcd_hub.weights.safety import check_config, unknown_files, unknown_keys

_LOCAL_DIR = "local-dir:"

Origin = Literal["local", "fetched", "published", "shipped"]


@dataclass(frozen=True, kw_only=True)
class ListedWeight:
    """A weight's entry in a listing."""

    name: str
    """The name to pass to ``create_model``."""
    origin: Origin
    license: str
    """Licence of the weights; "unreadable" if the manifest is damaged."""
    parameters: int | None
    folder: Path | None
    """None if the weight has not been fetched."""


def list_weights(*, license: str | None = None) -> list[ListedWeight]:  # noqa: A002
    """List local, fetched, published and shipped weights, in the order in which they are looked up.

    Nothing is verified, and no network request is made.

    Args:
        license: Only list weights with this licence, such as ``apache-2.0``.
    """
    found = [_from_folder(name, "local", store.folder_of(name)) for name in store.names()]
    found += [_from_folder(name, "fetched", folder) for name, folder in fetched_folders().items()]
    known = {weight.name for weight in found}
    found += [
        ListedWeight(
            name=record.name,
            origin="published",
            license=record.license,
            parameters=record.parameters,
            folder=None,
        )
        for record in published_weights().values()
        if record.reference not in known
    ]
    found += [_from_folder(name, "shipped", shipped.FOLDER / name) for name in shipped.names()]
    return [weight for weight in found if license in {None, weight.license}]


def find(name: str | Path) -> Path | None:
    """Return the folder of a local, fetched or shipped weight; None if it is not on this machine.

    Args:
        name: ``resnet18.pcd``, ``ORG/NAME[@REVISION]``, or the folder of a run or an export. A
            local weight takes precedence over a fetched one of the same name, and both over a
            shipped one. With ``PCD_HUB_ORG`` set, the shipped weight is never found: the name
            stands for that organisation's.

    Raises:
        WeightError: If the name is malformed, the folder has no finished weight, or the manifest
            has changed since it was fetched.
    """
    name = as_name(name)
    if store.is_name(name) and (folder := store.where(name) or shipped_folder(name)):
        return folder
    if folder := folder_named(name):
        return folder
    if name.startswith(_LOCAL_DIR):
        return None
    published = reference_of(name)
    return fetched_folder(published[0]) if published else None


def find_here(name: str) -> Path:
    """Return the folder that :func:`find` returns.

    Raises:
        MissingWeightError: If there is no such weight on this machine.
        WeightError: If :func:`find` raises it.
    """
    if folder := find(name):
        return folder
    if shipped.where(name):
        raise MissingWeightError(
            f"{name} stands for the weight of PCD_HUB_ORG or of the published list, which is not "
            f"on this machine; run `pcd-hub fetch {name}`, or unset PCD_HUB_ORG for the one that "
            "pcd_hub ships"
        )
    held, ships = (", ".join(names) or "none" for names in (store.names(), shipped.names()))
    raise MissingWeightError(
        f"{name} is not on this machine; {store.home()} holds {held}, pcd_hub ships {ships}. Run "
        f"`pcd-hub fetch ORG/NAME` to get one from the Hub{hint_of_folder(name)}"
    )


def shipped_folder(name: str) -> Path | None:
    """Return the folder of the shipped weight that ``name`` (``resnet18.pcd``) stands for.

    None if there is none, or if ``PCD_HUB_ORG`` or the published list gives the name to another
    file. The published copy of the shipped file needs no download.
    """
    folder, published = shipped.where(name), reference_of(name)
    if folder is None or published is None:
        return folder
    listed = published_weights().get(name)
    if listed and published == (listed.reference, listed.manifest_sha256):
        with suppress(WeightError):  # a damaged manifest
            return folder if weights_sha256(folder) == listed.weights_sha256 else None
    return None


def notice_of_replaced(name: str) -> str:
    """Return a sentence if a local weight is used instead of the shipped one of the same name.

    It is empty if both hold the same weights, or if ``PCD_HUB_LOCAL`` or ``PCD_HUB_ORG`` states
    which one is meant.
    """
    if os.environ.get("PCD_HUB_LOCAL") or os.environ.get("PCD_HUB_ORG"):
        return ""
    ours = shipped.where(name)
    local = store.where(name) if ours else None
    if ours is None or local is None:
        return ""
    with suppress(WeightError):  # loading a damaged one raises
        if weights_sha256(ours) == weights_sha256(local):
            return ""
    return (
        f"{name}: the weight in {store.home()} is used instead of the one that pcd_hub ships; "
        "PCD_HUB_LOCAL=0 selects the shipped one, PCD_HUB_LOCAL=1 this one without this message"
    )


def last_export(run: Path) -> Path:
    """Return the folder of a run's last export; the run's own folder if it has none."""
    exports = [path for path in run.iterdir() if re.fullmatch(r"export(-\d+)?", path.name)]
    return max(exports, key=lambda path: (len(path.name), path.name), default=run)


def as_name(name: str | Path) -> str:
    """Return a name; a path becomes ``local-dir:PATH``, and timm's prefix of the Hub is removed."""
    return name.removeprefix("hf-hub:") if isinstance(name, str) else f"{_LOCAL_DIR}{name}"


def folder_named(name: str) -> Path | None:
    """Return the weight's folder if ``name`` is that of a run or an export; None for others.

    ``resnet18.pcd`` and ``ORG/resnet18.pcd`` are never folders here, but names.

    Raises:
        WeightError: If it is a folder without a finished weight.
    """
    place = name.removeprefix(_LOCAL_DIR)
    owner, _, last = place.rpartition("/")
    on_hub = "/" not in owner and owner not in {".", "..", "~"} and place[:1] != "/"
    if place == name and on_hub and store.is_name(last):
        return None
    path = store.expanded(place)
    folder = exported_folder(path)
    if folder is None and is_dir(path):
        raise WeightError(_no_weight_in(path))
    return folder


def hint_of_folder(name: str) -> str:
    """Return "; RUNS has no folder NAME; did you mean ...?" if a run's folder may be meant."""
    path = store.expanded(name.removeprefix(_LOCAL_DIR))
    if "/" not in name or not is_dir(path.parent):
        return ""
    others: list[str] = []
    with suppress(PCDHubError):  # it cannot be listed
        others = list_subfolders(path.parent)
    return f"; {path.parent} has no folder {path.name}{nearest(path.name, others)}"


def exported_folder(run: Path) -> Path | None:
    """Return the folder of a finished weight for a run's folder, or its own; None for others."""
    folder = last_export(run) if is_dir(run) else run
    return folder if is_file(folder / MANIFEST_FILE) else None


def finished_export(run_or_name: str | Path) -> Path:
    """Return the folder of a finished weight.

    Args:
        run_or_name: A run's folder (its last export is used), an export's folder, or the name of a
            local or shipped weight.

    Raises:
        WeightError: If there is no such weight, or the run has not finished.
    """
    path = Path(run_or_name).expanduser()
    if path.is_dir():
        folder = last_export(path)
    elif found := _stored_or_shipped(str(run_or_name)):
        folder = found
    else:
        raise WeightError(
            f"{run_or_name} is neither the folder of a run nor a weight in {store.home()}, which "
            f"holds {', '.join(store.names()) or 'none'}"
        )
    if not (folder / MANIFEST_FILE).is_file():
        raise WeightError(_no_weight_in(path))
    return folder


def _no_weight_in(folder: Path) -> str:
    """Return the message of a folder without a finished weight."""
    students = sorted(str(export.parent) for export in folder.glob("*/export"))
    hint = f"name a student of it: {', '.join(students)}" if students else "did the run finish?"
    if not students and is_dir(folder / "checkpoints"):
        hint += f" `pcd-hub distill --resume {shlex.quote(str(folder))}` continues it"
    return f"{folder} has no {MANIFEST_FILE}; {hint}"


def _stored_or_shipped(name: str) -> Path | None:
    return (store.where(name) or shipped.where(name)) if store.is_name(name) else None


def has_weight(name: str) -> bool:
    """Return whether ``name`` (``resnet18.pcd``) is local, fetched, shipped or listed as published.

    No network request is made, so weights of ``PCD_HUB_ORG`` count only once they are fetched.
    """
    try:
        return find(name) is not None or name in published_weights()
    except PCDHubError:  # an unreadable store, or a manifest that changed after the fetch
        return False


def record_of(folder: Path) -> dict[str, Any]:
    """Return the record of the weight in ``folder`` as a plain dict."""
    return read_manifest(folder)["record"]


def unknown_parts(folder: Path) -> list[str]:
    """List the fields and files of a weight that this version of pcd_hub does not know.

    Raises:
        WeightError: If the manifest or the configuration is damaged.
    """
    manifest = read_manifest(folder)
    entry = next(entry for entry in manifest["files"] if entry["path"] == CONFIG_FILE)
    config = check_config(read_listed(folder, entry), what=str(folder / CONFIG_FILE))
    fields = {
        MANIFEST_FILE: unknown_keys(manifest, "manifest"),
        "record": sorted(WeightRecord.from_dict(manifest["record"]).unknown),
        CONFIG_FILE: unknown_keys(config, "config"),
        "pretrained_cfg": unknown_keys(config["pretrained_cfg"], "pretrained_cfg"),
    }
    parts = [f"{place}: {key}" for place, keys in fields.items() for key in keys]
    return [*parts, *(f"file {path}" for path in unknown_files(manifest))]


def _from_folder(name: str, origin: Origin, folder: Path) -> ListedWeight:
    try:
        record = WeightRecord.from_dict(record_of(folder))
    except WeightError:
        return ListedWeight(
            name=name, origin=origin, license="unreadable", parameters=None, folder=folder
        )
    return ListedWeight(
        name=name,
        origin=origin,
        license=record.licenses.get("weights", NOT_STATED),
        parameters=count if isinstance(count := record.model.get("parameters"), int) else None,
        folder=folder,
    )
