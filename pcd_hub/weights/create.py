"""``create_model``: a weight by name, from this machine or the Hub, verified, as a timm model."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from pcd_hub.errors import PCDHubError, WeightError
from pcd_hub.models.entries import entry_cfg, forget_tensors
from pcd_hub.weights import store
from pcd_hub.weights.hub.fetch import find_published
from pcd_hub.weights.hub.published import published_weights, reference_of
from pcd_hub.weights.load import ReadWeight, read_weight
from pcd_hub.weights.manifest import weights_sha256

_LOCAL_DIR = "local-dir:"
_NOT_OURS_TO_PASS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


class _Place(NamedTuple):
    folder: Path
    what: str
    manifest_sha256: str | None = None


def create_model(
    name: str, *, manifest_sha256: str | None = None, **timm_arguments: Any
) -> nn.Module:
    """A timm model with a verified weight: the bytes that are parsed are the bytes that are hashed.

    Args:
        name: ``resnet18.pcd`` (local store, or published), ``ORG/NAME[@REVISION]`` on the Hub, or
            ``local-dir:FOLDER``.
        manifest_sha256: What the weight's manifest must hash to, if you pinned it.
        **timm_arguments: As of ``timm.create_model``: ``features_only``, ``num_classes`` ...

    Raises:
        WeightError: If there is no such weight, or it is damaged or not what it should be.
        HubError: If the Hub refuses it or cannot be reached.
    """
    for argument in _NOT_OURS_TO_PASS:
        if argument in timm_arguments:
            raise WeightError(
                f"create_model takes no {argument}: {name} is what gets loaded; "
                "use timm.create_model to load something else"
            )
    return build_model(_read(_place(name, manifest_sha256)), **timm_arguments)


def read_by_name(name: str) -> dict[str, Tensor]:
    """The verified tensors of a weight; what the timm entries load.

    Raises:
        WeightError: As :func:`create_model`.
        HubError: As :func:`create_model`.
    """
    weight = _read(_place(name, None))
    architecture = name.partition(".")[0]
    if weight.config["architecture"] != architecture:
        raise WeightError(
            f"the weight {name} is of {weight.config['architecture']}; publish or store it under "
            "the name of its architecture"
        )
    own, of_entry = weight.config["pretrained_cfg"], entry_cfg(architecture)
    for what in ("mean", "std"):
        if tuple(own[what]) != getattr(of_entry, what):
            raise WeightError(
                f"the weight {name} expects pixels of another {what} ({own[what]}) than timm's "
                f'entry says; load it with pcd_hub.create_model("{name}")'
            )
    return weight.tensors


def _read(place: _Place) -> ReadWeight:
    return read_weight(place.folder, what=place.what, manifest_sha256=place.manifest_sha256)


def _place(name: str, manifest_sha256: str | None) -> _Place:
    if name.startswith(_LOCAL_DIR):
        folder = store.expanded(name.removeprefix(_LOCAL_DIR))
        return _Place(folder, str(folder), manifest_sha256)
    if store.is_name(name) and (folder := _local(name)):
        return _Place(folder, name, manifest_sha256)
    if reference_of(name) is None:
        raise WeightError(_how_to_get(name))
    fetched = find_published(name, manifest_sha256=manifest_sha256)
    return _Place(fetched.folder, fetched.reference, fetched.manifest_sha256)


def _local(name: str) -> Path | None:
    """The local weight, unless it would silently stand in for another, published one."""
    folder, published = store.where(name), reference_of(name)
    if folder is None or published is None or os.environ.get("PCD_HUB_LOCAL"):
        return folder
    if weights_sha256(folder) == _published_sha256(name):
        return folder
    raise WeightError(
        f"{name} is two weights: the local one in {folder}, and {published[0]}; "
        "set PCD_HUB_LOCAL=1 to take the local one, PCD_HUB_LOCAL=0 for the published one"
    )


def _published_sha256(name: str) -> str | None:
    """Of the published weights file, as it is now; None if nobody can tell.

    Where only ``PCD_HUB_ORG`` names it, it is fetched: what was fetched before may be old.
    """
    record = published_weights().get(name)
    if record and reference_of(name) == (record.reference, record.manifest_sha256):
        return record.weights_sha256
    with suppress(PCDHubError):
        return weights_sha256(find_published(name).folder)
    return None


def _how_to_get(name: str) -> str:
    off = "" if store.enabled() else " (PCD_HUB_LOCAL=0 turns the local store off)"
    return (
        f"there is no weight {name}{off}. Three things would give one: distil it "
        f"(recipes/distill.py puts it into {store.home()}), point PCD_HUB_HOME to a folder that "
        f"holds {name}/, or set PCD_HUB_ORG to the organisation whose {name} on the Hub you want"
    )


def build_model(weight: ReadWeight, **timm_arguments: Any) -> nn.Module:
    """A timm model with the tensors of a weight that was read and verified."""
    config = weight.config
    arguments = {"num_classes": 0, **config.get("model_args", {}), **timm_arguments}
    cfg = {**config["pretrained_cfg"], "state_dict": weight.tensors}
    model = timm.create_model(
        config["architecture"], pretrained=True, pretrained_cfg=cfg, **arguments
    )
    return forget_tensors(model)


@torch.inference_mode()
def golden_features(model: nn.Module, image_size: int) -> tuple[float, ...]:
    """The first eight pooled features of one fixed image, to recognise a weight by."""
    rows, columns = (torch.linspace(-2, 2, image_size).view(shape) for shape in ((-1, 1), (1, -1)))
    image = torch.stack(
        [rows * columns, torch.sin(3 * rows) - columns, torch.cos(5 * columns * rows)]
    )
    pooled = model.eval()(image.expand(1, 3, -1, -1)).flatten()
    return tuple(round(float(value), 5) for value in pooled[:8])
