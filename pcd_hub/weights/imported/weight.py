"""Save a checkpoint that another library trained in the local store, with an honest record."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pcd_hub
from pcd_hub.data.multiband.names import RGB
from pcd_hub.errors import WeightError
from pcd_hub.files.strict_json import printable
from pcd_hub.files.writable import temporary_folder
from pcd_hub.image_size import ImageSize, format_size, simplest
from pcd_hub.models.entries import check_architecture, entry_cfg
from pcd_hub.weights import store
from pcd_hub.weights.export import export_weight
from pcd_hub.weights.imported.reading import read_checkpoint
from pcd_hub.weights.input_bands import InputBands
from pcd_hub.weights.layout import IMPORTED
from pcd_hub.weights.record import NOT_STATED, WeightRecord

log = logging.getLogger("pcd_hub")


@dataclass(frozen=True, kw_only=True)
class ImportedWeight:
    """A checkpoint of another library in the local store."""

    name: str
    """The name to pass to ``create_model``."""
    folder: Path
    license: str
    mean: tuple[float, ...]
    """Mean of red, green and blue in [0, 1]."""
    std: tuple[float, ...]
    facts: dict[str, Any]
    """File, sha256, layout, prefix and more, as in the record's ``imported``."""


def import_weights(
    file: str | Path,
    architecture: str,
    *,
    name: str | None = None,
    license: str | None = None,  # noqa: A002 - the usual name
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool = False,
    prefix: str | None = None,
    image_size: ImageSize | None = None,
) -> ImportedWeight:
    """Save a checkpoint of another library in the local store, to evaluate and publish it.

    Every tensor of the architecture must be in the file, under one prefix, with the names of timm,
    torchvision, detectron2, mmdet or transformers. The record states the file, and that its
    training is unknown.

    Args:
        file: A ``.safetensors`` or ``torch.save`` file; it is read without running code.
        architecture: timm's name of the backbone, such as ``resnet18``.
        name: ``imported_WHAT`` or ``ARCH.imported_WHAT``; ``ARCH.imported`` by default.
        license: Licence of the weights, such as ``apache-2.0``; "not stated" if not given.
        mean: Mean of red, green and blue, for values from 0 to 1, or from 0 to 255 if one is
            above 1; ImageNet's by default.
        std: Standard deviation, for the same values as ``mean``.
        bgr: The network takes blue, green and red: its first layer is reversed, so that the weight
            takes red, green and blue.
        prefix: Where the backbone is in the file (``state_dict.encoder_k``), if it holds several.
        image_size: Size of the images, for architectures that depend on it.

    Raises:
        WeightError: If the file is missing, damaged or anything but tensors in plain containers, or
            its tensors are not exactly those of the architecture.
        StudentError: If timm has no such architecture.
    """
    check_architecture(architecture)
    name = _full_name(name, architecture)
    bands, normalisation = _bands(architecture, mean, std)
    size = _image_size(architecture, image_size)
    path = store.expanded(str(file))
    read = read_checkpoint(path, architecture, image_size=size, bgr=bgr, prefix=prefix)
    facts = {**read.facts, "normalisation": normalisation}
    record = _record(name, architecture, license or NOT_STATED, facts, notes=read.warnings)
    for warning in read.warnings:
        log.warning("%s: %s", facts["file"], warning)
    with temporary_folder() as scratch:
        export = export_weight(read.state, record, scratch / "export", image_size=size, bands=bands)
        if replaced := store.replace(name, export):
            log.warning("%s", store.notice_of_kept(name, replaced))
    return ImportedWeight(
        name=name,
        folder=store.folder_of(name),
        license=record.licenses["weights"],
        mean=bands.mean,
        std=bands.std,
        facts=facts,
    )


def _full_name(name: str | None, architecture: str) -> str:
    """Return the weight's whole name.

    Raises:
        WeightError: If it is malformed, or not that of an imported weight of this architecture.
    """
    tag = (name or IMPORTED).removeprefix(f"{architecture}.")
    full = f"{architecture}.{tag}"
    if not (store.is_name(full) and tag.startswith(IMPORTED)):
        raise WeightError(
            f"--name {printable(name or '')[:100]}: expected {IMPORTED}_WHAT or "
            f"{architecture}.{IMPORTED}_WHAT, in lower-case letters, digits and underscores"
        )
    return full


def _image_size(architecture: str, given: ImageSize | None) -> ImageSize:
    """Return the size of the images that the architecture is built for.

    Raises:
        WeightError: If one is given, and the architecture has no fixed input size.
    """
    cfg = entry_cfg(architecture)
    if given is None:
        return simplest(cfg.input_size[1:])
    if not cfg.fixed_input_size:
        raise WeightError(
            f"--image-size {format_size(given)}: {architecture} takes images of any size; leave it "
            "out"
        )
    return given


def _bands(
    architecture: str, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[InputBands, str]:
    """Return the normalisation for values from 0 to 1, and who states it.

    Raises:
        WeightError: If one of the two is missing, or a number is out of range.
    """
    if mean is None and std is None:
        return InputBands.rgb(architecture), "ImageNet's (assumed)"
    if mean is None or std is None:
        raise WeightError("--mean and --std belong together: give both, or none for ImageNet's")
    scale = 255 if max(mean, default=0) > 1 else 1
    bands = InputBands(RGB, tuple(v / scale for v in mean), tuple(v / scale for v in std))
    within = all(0 <= m <= 1 for m in bands.mean) and all(0.001 <= s <= 1 for s in bands.std)
    if not (within and len(mean) == len(std) == 3):
        raise WeightError(
            f"--mean {' '.join(map(str, mean))} --std {' '.join(map(str, std))}: expected three "
            "numbers each, for values from 0 to 1 or from 0 to 255, as 0.485 0.456 0.406"
        )
    return bands, "stated by the user"


def _record(
    name: str, architecture: str, license_id: str, facts: dict[str, Any], *, notes: tuple[str, ...]
) -> WeightRecord:
    """Return the record: only the file is known."""
    return replace(
        WeightRecord.trial(architecture),
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe="pcd-hub import",
        code={"pcd_hub": pcd_hub.__version__},
        versions={library: version(library) for library in ("torch", "timm")},
        licenses={"weights": license_id},
        imported=facts,
        notes=notes,
    )
