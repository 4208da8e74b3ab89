"""Average a weight with the weight that its training started from (WiSE-FT, arXiv:2109.01903).

The mean lies between the two in what training has changed: more of the start's generality, less of
what was learned on the new images (recipes/RESULTS.md, "From the shipped weight, on images of your
own"). After more training on the same images, it was as good as the better one on one set, and
nearly so on the other ("The shipped weights").
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pcd_hub.errors import WeightError
from pcd_hub.files.writable import temporary_folder
from pcd_hub.files.write import atomic_folder
from pcd_hub.models.tensor_files import save_tensors, tensors_sha256
from pcd_hub.weights import shipped, store
from pcd_hub.weights.catalogue import find_here, finished_export
from pcd_hub.weights.create import build_model
from pcd_hub.weights.export import describe
from pcd_hub.weights.layout import WEIGHTS_FILE
from pcd_hub.weights.load import ReadWeight, read_weight


@dataclass(frozen=True, kw_only=True)
class AveragedWeight:
    """A mean of two weights in the local store."""

    name: str
    """The name to pass to ``create_model``."""
    folder: Path
    share_of_start: float
    replaced: Path | None = None
    """The folder of the weight that had this name before, if there was one."""


def average(
    run_or_name: str | Path, start: str | Path, *, share: float = 0.5, name: str | None = None
) -> AveragedWeight:
    """Save the mean of a weight and of its start in the local store.

    Running statistics of batch norms are averaged as well; counts are those of the trained weight.
    The mean has the record of the trained weight, which states the share; measurements are left
    out, as they are not of these values.

    Args:
        run_or_name: A run's folder, an export's folder, or the name of a local weight.
        start: The weight of pcd_hub that this one was trained from: ``shipped``, a folder or a
            name.
        share: Share of the start in (0, 1).
        name: Name in the store, ``ARCH.pcd_WHAT``; by default the weight's own with ``_mean``.

    Raises:
        WeightError: If a weight is missing or damaged, ``start`` is not the one in the record or
            has another normalisation, the weight is a mean already, or ``share`` or ``name``
            cannot be used.
    """
    if not 0 < share < 1:
        raise WeightError(f"--share {share}: expected a number between 0 and 1, both excluded")
    trained = read_weight(finished_export(run_or_name))
    record, cfg = trained.record, trained.config["pretrained_cfg"]
    if record.averaged:
        raise WeightError(
            f"{record.name} is a mean already; average the run that it was made from with another "
            "--share"
        )
    folder = _folder(start, record.architecture)
    begin = read_weight(folder)
    name = store.check_name(name or f"{record.name}_mean")
    architecture, _, tag = name.partition(".")
    taken = {record.name, record.start.get("name"), f"{record.architecture}.pcd"}
    if architecture != record.architecture or name in taken:
        raise WeightError(
            f"--name {name}: expected {record.architecture}.pcd_WHAT, and neither the name of the "
            "weight nor that of its start"
        )
    tensors = _mean(trained, begin, folder, share)
    averaged = {"share_of_start": share, "trained_weights_sha256": trained.weights_sha256}
    model = {key: value for key, value in record.model.items() if key != "stored_as"}  # float32
    unmeasured = {"metrics": {}, "held_out": {}, "verdicts": ()}
    record = replace(record, name=name, averaged=averaged, model=model, **unmeasured)
    config = {**trained.config, "pretrained_cfg": {**cfg, "tag": tag}}
    with temporary_folder() as scratch:
        with atomic_folder(scratch / "export") as draft:
            save_tensors(tensors, draft / WEIGHTS_FILE)
            describe(draft, record, config)
            read_weight(draft)
        replaced = store.replace(name, scratch / "export")
    folder = store.folder_of(name)
    return AveragedWeight(name=name, folder=folder, share_of_start=share, replaced=replaced)


def _folder(start: str | Path, architecture: str) -> Path:
    if start == "shipped":
        found = shipped.of_architecture(architecture)
        if found is None:
            raise WeightError(
                f"{shipped.none_of(architecture)}; give the folder or the name of the start"
            )
        start = found
    place = str(start).removeprefix("local-dir:")
    is_folder = place != str(start) or Path(place).expanduser().is_dir()
    return finished_export(place) if is_folder else find_here(place)


def _mean(trained: ReadWeight, start: ReadWeight, folder: Path, share: float) -> dict[str, Tensor]:
    """Return the mean of all tensors of floating-point numbers, in float32.

    Raises:
        WeightError: If the trained weight did not start from this start, or the normalisation of
            the images differs, to which the training adapted the start's first layer.
    """
    record = trained.record
    if not (expected := str(record.start.get("sha256", ""))):
        raise WeightError(f"{record.name} was trained from random weights: it has no start")
    if start.record.architecture != record.architecture:
        raise WeightError(
            f"{folder} is a {start.record.architecture}, {record.name} a {record.architecture}; "
            f"expected the start of its training, {record.start.get('source')}"
        )
    ours = build_model(trained).state_dict()
    theirs = build_model(start, **trained.config.get("model_args", {})).state_dict()
    if tensors_sha256(theirs) != expected:
        source = record.start.get("source")
        remedy = "give its folder or its name; it must be a weight of pcd_hub"
        if source == "shipped":
            remedy = "give shipped, or install the version of pcd_hub that shipped it"
        raise WeightError(
            f"{folder} is not the weight that {record.name} was trained from, which is {source} "
            f"({expected[:12]}); {remedy}"
        )
    for what in ("mean", "std"):
        one, other = (weight.config["pretrained_cfg"][what] for weight in (trained, start))
        if list(one) != list(other):
            raise WeightError(
                f"the {what} of the images is {one} for {record.name}, {other} for its start: "
                "their weights are not for the same input and cannot be averaged"
            )
    return {
        key: torch.lerp(value, theirs[key], share) if value.is_floating_point() else value
        for key, value in ours.items()
    }
