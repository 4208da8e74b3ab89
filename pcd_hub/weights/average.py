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
    if architecture != record.architecture or name in {record.name, record.start.get("name")}:
        raise WeightError(
            f"--name {name}: expected {record.architecture}.pcd_WHAT, and neither the name of the "
            "weight nor that of its start"
        )
    tensors = _mean(trained, begin, folder, share)
    averaged = {"share_of_start": share, "trained_weights_sha256": trained.weights_sha256}
    record = replace(record, name=name, averaged=averaged, metrics={}, held_out={})
    config = {**trained.config, "pretrained_cfg": {**cfg, "tag": tag}}
    with temporary_folder() as scratch:
        with atomic_folder(scratch / "export") as draft:
            save_tensors(tensors, draft / WEIGHTS_FILE)
            describe(draft, record, config)
            read_weight(draft)
        store.add(name, scratch / "export")
    return AveragedWeight(name=name, folder=store.home() / name, share_of_start=share)


def _folder(start: str | Path, architecture: str) -> Path:
    if start == "shipped":
        start = shipped.of_architecture(architecture) or start
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
    ours = build_model(trained).state_dict()
    theirs = build_model(start, **trained.config.get("model_args", {})).state_dict()
    expected = str(record.start.get("sha256", ""))
    if not expected or tensors_sha256(theirs) != expected:
        named = f"{record.start.get('source')} ({expected[:12]})" if expected else "random weights"
        raise WeightError(
            f"{folder} is not the weight that {record.name} was trained from, which is {named}; "
            "give that one: shipped, its folder or its name. It must be a weight of pcd_hub"
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
