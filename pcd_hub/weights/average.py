"""Average a weight with the weight that its training started from (WiSE-FT, arXiv:2109.01903).

After more training from a good weight, the mean of both is often better than either: on the sets
that were measured for ``resnet18.pcd``, it kept what the training had lost and most of what it
had gained (recipes/RESULTS.md, "The shipped weights").
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pcd_hub.errors import WeightError
from pcd_hub.files.writable import temporary_folder
from pcd_hub.files.write import atomic_folder
from pcd_hub.models.tensor_files import save_tensors, tensors_sha256
from pcd_hub.weights import store
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
        start: The weight that this one was trained from, in the same forms, or a fetched one.
        share: Share of the start in (0, 1).
        name: Name in the store, ``ARCH.pcd_WHAT``; by default the weight's own with ``_mean``.

    Raises:
        WeightError: If a weight is missing or damaged, ``start`` is not the one in the record, or
            ``share`` or ``name`` is out of range.
    """
    if not 0 < share < 1:
        raise WeightError(f"--share {share}: expected a number between 0 and 1, both excluded")
    trained = read_weight(finished_export(run_or_name))
    is_folder = Path(start).expanduser().is_dir()
    begin = read_weight(finished_export(start) if is_folder else find_here(str(start)))
    tensors = _mean(trained, begin, str(start), share)
    stem = trained.record.name.removesuffix("_mean")
    name = store.check_name(name or f"{stem}_mean")
    architecture, _, tag = name.partition(".")
    if architecture != trained.record.architecture:
        raise WeightError(f"--name {name}: expected {trained.record.architecture}.pcd_WHAT")
    record = replace(
        trained.record,
        name=name,
        averaged={"share_of_start": share, "trained_weights_sha256": trained.weights_sha256},
        metrics={},
        held_out={},
    )
    config = {**trained.config, "pretrained_cfg": {**trained.config["pretrained_cfg"], "tag": tag}}
    with temporary_folder() as scratch:
        with atomic_folder(scratch / "export") as draft:
            save_tensors(tensors, draft / WEIGHTS_FILE)
            describe(draft, record, config)
            read_weight(draft)
        store.add(name, scratch / "export")
    return AveragedWeight(name=name, folder=store.home() / name, share_of_start=share)


def _mean(trained: ReadWeight, start: ReadWeight, label: str, share: float) -> dict[str, Tensor]:
    """Return the mean of all tensors of floating-point numbers, in float32.

    Raises:
        WeightError: If the trained weight did not start from this start.
    """
    record = trained.record
    expected = str(record.start.get("sha256", ""))
    ours, theirs = (build_model(weight).state_dict() for weight in (trained, start))
    if not expected or tensors_sha256(theirs) != expected:
        named = record.start.get("name", "random weights")
        raise WeightError(
            f"{label} is not the weight that {record.name} was trained from: its record says "
            f"{named}{expected and f' (sha256 {expected[:12]})'}. The mean of weights that were "
            "not trained from each other is of no use"
        )
    return {
        key: torch.lerp(value, theirs[key], share) if value.is_floating_point() else value
        for key, value in ours.items()
    }
