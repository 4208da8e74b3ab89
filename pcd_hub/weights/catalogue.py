"""All weights that can be loaded from here: local, fetched, published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pcd_hub.errors import WeightError
from pcd_hub.weights import store
from pcd_hub.weights.fetch import fetched_folder, fetched_weights
from pcd_hub.weights.manifest import read_manifest
from pcd_hub.weights.published import published_weights
from pcd_hub.weights.record import NOT_STATED


@dataclass(frozen=True, kw_only=True)
class ListedWeight:
    """One weight, without its tensors."""

    name: str
    """What ``create_model`` takes."""
    origin: Literal["local", "fetched", "published"]
    license: str
    """Of the weights."""
    parameters: int | None
    folder: Path | None
    """None for a published weight that was not fetched."""


def list_weights(*, license: str | None = None) -> list[ListedWeight]:  # noqa: A002
    """Every weight of the local store, every fetched one, and the package's published ones.

    Nothing is verified and nobody is asked.

    Args:
        license: Only weights under this licence, as ``apache-2.0``.

    Raises:
        WeightError: If a manifest is damaged.
    """
    found = [_from_folder(name, "local", store.home() / name) for name in store.names()]
    found += [_from_folder(w.reference, "fetched", w.folder) for w in fetched_weights()]
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
    return [weight for weight in found if license in {None, weight.license}]


def find(name: str) -> Path | None:
    """Where a weight lies on this machine, local or fetched; None if it does not.

    Args:
        name: ``resnet18.pcd`` or ``ORG/NAME[@REVISION]``.

    Raises:
        WeightError: If it is neither.
    """
    return fetched_folder(name) if "/" in name else store.where(name)


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the weight in ``folder``."""
    return read_manifest(folder)["record"]


def _from_folder(name: str, origin: Literal["local", "fetched"], folder: Path) -> ListedWeight:
    record = record_of(folder)
    licenses, model = record.get("licenses", {}), record.get("model", {})
    if not isinstance(licenses, dict) or not isinstance(model, dict):
        raise WeightError(
            f"the record in {folder} is damaged; delete the folder and fetch it again"
        )
    return ListedWeight(
        name=name,
        origin=origin,
        license=str(licenses.get("weights", NOT_STATED)),
        parameters=model.get("parameters"),
        folder=folder,
    )
