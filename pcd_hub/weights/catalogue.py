"""All weights that can be loaded from here: local, fetched, published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pcd_hub.errors import PCDHubError, WeightError
from pcd_hub.weights import store
from pcd_hub.weights.hub.fetch import fetched_folder, fetched_folders
from pcd_hub.weights.hub.published import published_weights, reference_of
from pcd_hub.weights.manifest import read_manifest
from pcd_hub.weights.record import NOT_STATED, WeightRecord


@dataclass(frozen=True, kw_only=True)
class ListedWeight:
    """One weight, without its tensors."""

    name: str
    """What ``create_model`` takes."""
    origin: Literal["local", "fetched", "published"]
    license: str
    """Of the weights; "unreadable" if the manifest is damaged."""
    parameters: int | None
    folder: Path | None
    """None for a published weight that was not fetched."""


def list_weights(*, license: str | None = None) -> list[ListedWeight]:  # noqa: A002
    """Every weight of the local store, every fetched one, and the package's published ones.

    Nothing is verified and nobody is asked.

    Args:
        license: Only weights under this licence, as ``apache-2.0``.
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
    return [weight for weight in found if license in {None, weight.license}]


def find(name: str) -> Path | None:
    """Where a weight lies on this machine, local or fetched; None if it does not.

    Args:
        name: ``resnet18.pcd`` or ``ORG/NAME[@REVISION]``. A local weight goes before a fetched one
            that is published under its name.

    Raises:
        WeightError: If it is neither, or not what was fetched.
    """
    if store.is_name(name) and (folder := store.where(name)):
        return folder
    published = reference_of(name)
    return fetched_folder(published[0]) if published else None


def has_weight(name: str) -> bool:
    """Whether ``name`` (``resnet18.pcd``) can be loaded: local, fetched, or on the package's list.

    Nobody is asked; an organisation in ``PCD_HUB_ORG`` counts for what was fetched from it.
    """
    try:
        return find(name) is not None or name in published_weights()
    except PCDHubError:  # a store that cannot be read, a fetched folder that was changed
        return False


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the weight in ``folder``."""
    return read_manifest(folder)["record"]


def _from_folder(name: str, origin: Literal["local", "fetched"], folder: Path) -> ListedWeight:
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
