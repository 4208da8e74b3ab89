"""Create a timm model with a verified weight from this machine, the Hub or the package.

A name is looked up in the local store, then in ``PCD_HUB_ORG`` or the list of published weights,
then among the shipped weights. An organisation that is named but does not answer is an error: the
shipped weight is not its weight.
"""

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pcd_hub.errors import HubNotFoundError, MissingWeightError, PCDHubError, WeightError
from pcd_hub.image_size import format_size, height_width
from pcd_hub.models.entries import entry_cfg, forget_tensors
from pcd_hub.weights import shipped, store
from pcd_hub.weights.catalogue import (
    as_name,
    folder_named,
    hint_of_folder,
    notice_of_replaced,
    shipped_folder,
)
from pcd_hub.weights.hub.fetch import fetch, read_fetched
from pcd_hub.weights.hub.published import published_weights, reference_of
from pcd_hub.weights.load import ReadWeight, read_weight
from pcd_hub.weights.manifest import weights_sha256
from pcd_hub.weights.safety import known_cfg

log = logging.getLogger("pcd_hub")

_LOCAL_DIR = "local-dir:"
_RESERVED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


def create_model(
    name: str | Path, *, manifest_sha256: str | None = None, **timm_arguments: Any
) -> nn.Module:
    """Create a timm model with a verified weight.

    Args:
        name: ``resnet18.pcd`` (local store, published, or shipped), ``ORG/NAME[@REVISION]`` on the
            Hub, ``local-dir:FOLDER``, or the folder of a run or an export, such as
            ``runs/own_images``.
        manifest_sha256: Expected sha256 of the manifest, if you pinned it.
        **timm_arguments: Arguments for ``timm.create_model``, such as ``features_only``.

    Raises:
        WeightError: If the weight is missing or damaged, or is not the expected one.
        HubError: If the Hub refuses access or cannot be reached.
    """
    for argument in _RESERVED:
        if argument in timm_arguments:
            raise WeightError(
                f"create_model takes no {argument}: it always loads {name}; "
                "use timm.create_model to load something else"
            )
    return build_model(read_named(name, manifest_sha256=manifest_sha256), **timm_arguments)


def read_by_name(name: str) -> dict[str, Tensor]:
    """Return the verified tensors of a weight, for use by the timm entries.

    Raises:
        WeightError: If :func:`create_model` would fail, or the weight has another architecture or
            normalisation than the timm entry.
        HubError: If the Hub refuses access or cannot be reached.
    """
    weight = read_named(name)
    architecture = name.partition(".")[0]
    if weight.config["architecture"] != architecture:
        raise WeightError(
            f"the weight {name} has architecture {weight.config['architecture']}, expected "
            f"{architecture}; publish or store it under the name of its architecture"
        )
    own, of_entry = weight.config["pretrained_cfg"], entry_cfg(architecture)
    if "in_chans" in weight.config.get("model_args", {}):
        raise WeightError(
            f"the weight {name} takes images of {own['input_size'][0]} bands, timm's entry takes "
            f'3; load it with pcd_hub.create_model("{name}")'
        )
    if isinstance(size := weight.config.get("model_args", {}).get("img_size"), list):
        raise WeightError(
            f"the weight {name} was trained at {format_size(size)} px, and timm's entry takes its "
            f'position embeddings as square; load it with pcd_hub.create_model("{name}")'
        )
    for what in ("mean", "std"):
        if tuple(own[what]) != getattr(of_entry, what):
            raise WeightError(
                f"the weight {name} expects images normalised with {what} {own[what]}, timm's "
                f"entry has {getattr(of_entry, what)}; load it with "
                f'pcd_hub.create_model("{name}")'
            )
    return weight.tensors


def read_named(name: str | Path, *, manifest_sha256: str | None = None) -> ReadWeight:
    """Read a verified weight by a name for :func:`create_model`.

    Raises:
        WeightError: If the weight is missing or damaged, or is not the expected one.
        HubError: If the Hub refuses access or cannot be reached.
    """
    name = as_name(name)
    folder = folder_named(name)
    if folder is None and name.startswith(_LOCAL_DIR):
        missing = f"there is no folder {store.shown(name.removeprefix(_LOCAL_DIR))}"
        raise MissingWeightError(hint_of_folder(name).removeprefix("; ") or missing)
    if folder is not None:
        return read_weight(folder, manifest_sha256=manifest_sha256)
    if store.is_name(name) and (folder := _local(name)):
        if notice := notice_of_replaced(name):
            _warn_once(notice)
        return read_weight(folder, what=name, manifest_sha256=manifest_sha256)
    if store.is_name(name) and (folder := _shipped(name, manifest_sha256)):
        return read_weight(folder, what=f"{name} (shipped)", manifest_sha256=manifest_sha256)
    if reference_of(name) is None:
        raise WeightError(_how_to_get(name))
    try:
        return read_fetched(name, manifest_sha256=manifest_sha256)[1]
    except PCDHubError as error:
        folder = shipped.where(name)
        hint = f"; {_how_to_get_shipped(name, folder)}" if folder else hint_of_folder(name)
        raise type(error)(f"{error}{hint}") from error


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _shipped(name: str, manifest_sha256: str | None) -> Path | None:
    """Return the shipped weight's folder, unless a published copy has the pinned manifest."""
    if manifest_sha256 and reference_of(name):
        return None
    return shipped_folder(name)


def _local(name: str) -> Path | None:
    """Return the local weight's folder; raise if a different weight is published as ``name``."""
    folder, published = store.where(name), reference_of(name)
    if folder is None or published is None or os.environ.get("PCD_HUB_LOCAL"):
        return folder
    try:
        published_sha256 = _published_sha256(name)
    except HubNotFoundError as error:
        _warn_once(f"{name}: the local weight is used; {error}")
        return folder
    except PCDHubError as error:
        raise type(error)(
            f"{name}: the local weight in {folder} may differ from {published[0]} ({error}); "
            "set PCD_HUB_LOCAL=1 to use the local one"
        ) from error
    if weights_sha256(folder) == published_sha256:
        return folder
    raise WeightError(
        f"{name} is ambiguous: the local weight in {folder} and {published[0]} differ; "
        "set PCD_HUB_LOCAL=1 to use the local one, PCD_HUB_LOCAL=0 for the published one"
    )


def _published_sha256(name: str) -> str:
    """Return the sha256 of the published weights file.

    A weight of ``PCD_HUB_ORG`` is fetched, because a copy in the cache may be outdated.

    Raises:
        HubNotFoundError: If the organisation has no such repository, or none that is visible.
        PCDHubError: If the Hub cannot be reached, or the weight is damaged.
    """
    record = published_weights().get(name)
    if record and reference_of(name) == (record.reference, record.manifest_sha256):
        return record.weights_sha256
    return weights_sha256(fetch(name).folder)


def _how_to_get(name: str) -> str:
    is_off = os.environ.get("PCD_HUB_LOCAL") == "0"
    off = " (PCD_HUB_LOCAL=0 turns the local store off)" if is_off else ""
    ships = ", ".join(shipped.names()) or "none"
    return (
        f"there is no weight {name}{off}; pcd_hub ships {ships}. Distil one (it is saved in "
        f"{store.home()}), point PCD_HUB_HOME to a folder with {name}/, or set PCD_HUB_ORG to "
        f"an organisation that publishes {name} on the Hub"
    )


def _how_to_get_shipped(name: str, folder: Path) -> str:
    remedy = f'pcd_hub.create_model("local-dir:{folder}")'
    if os.environ.get("PCD_HUB_ORG"):
        remedy = "unset PCD_HUB_ORG"
    return f"{name} as shipped with pcd_hub is not used instead: {remedy} to load it"


def build_model(weight: ReadWeight, **timm_arguments: Any) -> nn.Module:
    """Build a timm model and load the tensors of a verified weight."""
    config = weight.config
    arguments = {"num_classes": 0, **config.get("model_args", {}), **timm_arguments}
    in_chans = config.get("model_args", {}).get("in_chans", 3)
    asked = timm_arguments.get("in_chans", in_chans)
    if asked != in_chans != 3:  # timm adapts weights for RGB images, no others
        raise WeightError(
            f"in_chans {asked}: {weight.record.name} takes images of {in_chans} bands; leave it "
            "out, and replace the first layer after loading"
        )
    own_size = config.get("model_args", {}).get("img_size")
    if isinstance(own_size, list) and height_width(own_size) != height_width(arguments["img_size"]):
        weight = _resized(weight, arguments["img_size"])
    cfg = {**known_cfg(weight.config["pretrained_cfg"]), "state_dict": weight.tensors}
    model = timm.create_model(
        config["architecture"], pretrained=True, pretrained_cfg=cfg, **arguments
    )
    return forget_tensors(model)


def _resized(weight: ReadWeight, size: int | Sequence[int]) -> ReadWeight:
    """Resample position embeddings that are not square, which timm 1.0.26 takes as square."""
    model: Any = build_model(weight)
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=height_width(size))
    tensors, name = model.state_dict(), "pos_embed"
    if name in tensors and torch.equal(tensors[name], weight.tensors[name].to(tensors[name].dtype)):
        own_size = format_size(weight.config["model_args"]["img_size"])
        raise WeightError(
            f"{weight.record.name} was trained at {own_size} px, and timm {timm.__version__} "
            f"cannot resize its position embeddings to {format_size(size)}; upgrade timm, or use "
            "the size of the training"
        )
    cfg = {**weight.config["pretrained_cfg"], "input_size": [3, *height_width(size)]}
    return weight._replace(tensors=tensors, config={**weight.config, "pretrained_cfg": cfg})


@torch.inference_mode()
def golden_features(
    model: nn.Module, image_size: int | Sequence[int], *, in_chans: int = 3
) -> tuple[float, ...]:
    """Return the first eight pooled features of a fixed image, as a fingerprint of the weight."""
    height, width = height_width(image_size)
    rows, columns = torch.linspace(-2, 2, height)[:, None], torch.linspace(-2, 2, width)[None]
    image = torch.stack(
        [rows * columns, torch.sin(3 * rows) - columns, torch.cos(5 * columns * rows)]
    )
    image = image[torch.arange(in_chans) % 3]
    pooled = model.eval()(image[None]).flatten()
    return tuple(round(float(value), 5) for value in pooled[:8])
