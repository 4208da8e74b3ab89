"""Collect what the gallery shows of each known weight."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pcd_hub.errors import PCDHubError, first_line
from pcd_hub.image_size import format_size
from pcd_hub.report.page.pictures import Picture, PictureError, embed
from pcd_hub.weights.catalogue import ListedWeight, list_weights, notice_of_replaced
from pcd_hub.weights.layout import WEIGHTS_FILE
from pcd_hub.weights.local_paths import shortened
from pcd_hub.weights.manifest import read_manifest
from pcd_hub.weights.record import NOT_STATED, Measurement, WeightRecord

_METRIC = "mean IoU"
_MAX_COLUMNS = 6
"""Columns of scores; data sets that few weights were measured on are left out."""
_PICTURES = {
    "pca.png": "Feature maps as colours: images, teacher, this weight",
    "probe.png": "Segmentation by the linear probe: images, truth, then the models of its table",
    "training.png": "Loss and learning rate",
}


@dataclass(frozen=True, kw_only=True)
class GalleryEntry:
    """A weight in the gallery; None for what is not known."""

    name: str
    origin: str
    """Where it is: "shipped", "local", "fetched" or "published" (not fetched)."""
    license: str
    remark: str = ""
    """What is needed to load it by its name."""
    architecture: str = ""
    parameters: float | None = None
    """In millions."""
    megabytes: float | None = None
    gmacs: float | None = None
    image_size: str = ""
    """Size for which ``gmacs`` holds, in pixels."""
    teacher: str = ""
    images: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    """Mean IoU in %, by data set."""
    pictures: Sequence[tuple[str, Picture]] = ()
    problems: Sequence[str] = ()
    """What cannot be read, each in one line."""

    @property
    def code(self) -> str:
        """Python that loads the weight."""
        name = json.dumps(self.name, ensure_ascii=False)
        remark = f"  # {self.remark}" if self.remark else ""
        return (
            f"import pcd_hub{remark}\n\nbackbone = pcd_hub.create_model({name}, features_only=True)"
        )


def gallery_entries() -> list[GalleryEntry]:
    """Return all known weights, shipped ones too, by name; no network request is made."""
    return [_entry(weight) for weight in sorted(list_weights(), key=lambda weight: weight.name)]


def score_columns(entries: Sequence[GalleryEntry]) -> list[str]:
    """Return the data sets on which most weights were measured."""
    counts = Counter(dataset for entry in entries for dataset in entry.scores)
    return [dataset for dataset, _ in counts.most_common(_MAX_COLUMNS)]


def _remark(weight: ListedWeight) -> str:
    is_hidden = weight.origin == "shipped" and bool(notice_of_replaced(weight.name))
    return "with PCD_HUB_LOCAL=0, as a local weight has this name" if is_hidden else ""


def _entry(weight: ListedWeight) -> GalleryEntry:
    known: dict[str, Any] = {
        "name": weight.name,
        "origin": weight.origin,
        "license": weight.license,
        "remark": _remark(weight),
        "parameters": None if weight.parameters is None else weight.parameters / 1e6,
    }
    if weight.folder is None:
        return GalleryEntry(**known)
    try:
        manifest = read_manifest(weight.folder)
        record = WeightRecord.from_dict(manifest["record"])
        scores = _scores(record)
    except PCDHubError as error:
        return GalleryEntry(**known, problems=(first_line(error),))
    pictures, problems = _pictures(weight, [file["path"] for file in manifest["files"]])
    macs = record.model.get("macs")
    images = record.data.get("images")
    size = next((f["size"] for f in manifest["files"] if f["path"] == WEIGHTS_FILE), None)
    return GalleryEntry(
        **known,
        architecture=record.architecture,
        megabytes=None if size is None else size / 1e6,
        gmacs=macs / 1e9 if isinstance(macs, int | float) else None,
        image_size=format_size(record.model.get("image_size", "")),
        teacher=shortened(str(record.teacher.get("source", NOT_STATED))),
        images=(f"{images:,} of " if isinstance(images, int) else "")
        + ", ".join(map(shortened, record.sources)),
        scores=scores,
        pictures=pictures,
        problems=problems,
    )


def _scores(record: WeightRecord) -> dict[str, float]:
    return {
        f"{table.dataset} ({table.task}{_version(table)})": table.means[table.subject]
        for table in record.measurements().values()
        if table.metric == _METRIC
    }


def _version(table: Measurement) -> str:
    """Return the protocol's version for a column's head; scores of two versions differ in it."""
    version = table.protocol_version
    return f", protocol version {version}" if version > 1 else ""


def _pictures(
    weight: ListedWeight, files: Sequence[str]
) -> tuple[list[tuple[str, Picture]], list[str]]:
    shown, problems = [], []
    assert weight.folder is not None
    for name, caption in _PICTURES.items():
        if name in files:
            try:
                picture = embed(weight.folder / name, alt=f"{caption}: {weight.name}")
                shown.append((caption, picture))
            except PictureError as error:
                problems.append(str(error))
    return shown, problems
