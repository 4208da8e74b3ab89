"""Open any timm model for evaluation by one string.

==============================  ====================================================================
``resnet18.pcd``                a pcd_hub weight, local, published or shipped; verified
``ORG/NAME[@REV]``              a pcd_hub weight in a Hub repository
``local-dir:DIR``               an exported weight, verified; or any folder in timm's layout
``resnet18.a1_in1k``            any other timm model with its pretrained weights
``hf-hub:ORG/NAME[@REV]``       a timm model in a Hub repository, loaded by timm
``random:ARCH``                 a timm architecture with random weights, drawn from the seed
``onnx:FILE``                   feature maps of ``pcd-hub export --to onnx``, for the mask probe
``teacher:SOURCE``              the backbone of a teacher (``pcd_hub/models/teacher_loading.py``)
==============================  ====================================================================
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from pcd_hub.data.multiband.names import RGB
from pcd_hub.data.sources.uris import exists, local_path
from pcd_hub.errors import ConfigError, StudentError, WeightError, first_line, nearest
from pcd_hub.models.entries import (
    build_arguments,
    check_architecture,
    entry_cfg,
    forget_tensors,
)
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.models.timm_loading import cache_alone_if_unreachable, create_pretrained, weights_file
from pcd_hub.weights import store
from pcd_hub.weights.catalogue import find, record_of
from pcd_hub.weights.create import build_model, read_named
from pcd_hub.weights.formats.onnx_model import open_onnx
from pcd_hub.weights.hub.published import published_weights
from pcd_hub.weights.input_bands import recorded_bands
from pcd_hub.weights.layout import MANIFEST_FILE
from pcd_hub.weights.manifest import weights_sha256
from pcd_hub.weights.record import WeightRecord

Prepared = TypeVar("Prepared")


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A headless timm model and its input normalisation."""

    name: str
    """Name passed to :func:`open_model`; the row label in results tables."""
    model: nn.Module
    mean: tuple[float, ...]
    """Mean of the pixel values in [0, 1] per channel."""
    std: tuple[float, ...]
    """Standard deviation of the pixel values in [0, 1] per channel."""
    weights_sha256: str | None = None
    """sha256 of the weights file if this is a pcd_hub weight, otherwise None."""

    @property
    def architecture(self) -> str:
        """Name of the timm architecture; empty if the model does not state it."""
        return str((getattr(self.model, "pretrained_cfg", None) or {}).get("architecture") or "")


def open_model(
    name: str, *, image_size: int = 224, seed: int = 0, **timm_arguments: Any
) -> EvaluatedModel:
    """Build a model and load its weights.

    Args:
        name: One of the forms in the table at the top of this file.
        image_size: Height and width of the images in pixels; used only by architectures with a
            fixed input size.
        seed: Seed of ``random:`` weights; everything else ignores it.
        **timm_arguments: Passed to ``timm.create_model``, e.g. ``features_only``.

    Raises:
        StudentError: If the model or its pretrained weights do not exist.
        TeacherError: If ``teacher:SOURCE`` cannot be loaded.
        WeightError: If a pcd_hub weight is missing or damaged.
        HubError: If the Hub denies access or cannot be reached.
    """
    arguments = {"num_classes": 0, **timm_arguments}
    kind, colon, rest = name.partition(":")
    if colon and kind == "random":
        return _with_random_weights(name, rest, image_size, seed, arguments)
    if colon and kind == "teacher":
        return _teacher(name, rest, image_size, arguments)
    if colon and kind == "onnx":
        return _onnx(name, rest, timm_arguments)
    is_pcd = is_pcd_weight(name)
    if architecture := _architecture(name):
        check_architecture(architecture)
        arguments = {**build_arguments(architecture, image_size), **arguments}
    return _pcd_weight(name, arguments) if is_pcd else _timm_model(name, arguments)


def for_each_seed(
    name: str,
    seeds: Sequence[int],
    prepare: Callable[[EvaluatedModel], Prepared],
    *,
    image_size: int,
) -> Iterator[tuple[int, EvaluatedModel, Prepared]]:
    """Yield seed, model and ``prepare(model)`` for each seed.

    ``random:`` models are built and prepared again for every seed, all others once.
    """
    under_test = open_model(name, image_size=image_size, seed=seeds[0])
    prepared = prepare(under_test)
    for seed in seeds:
        if name.startswith("random:") and seed != seeds[0]:
            under_test = open_model(name, image_size=image_size, seed=seed)
            prepared = prepare(under_test)
        yield seed, under_test, prepared


def check_models(models: Sequence[str], seeds: Sequence[int]) -> None:
    """Check the models and seeds of an evaluation, without loading or downloading a model.

    Raises:
        ConfigError: If either is empty or has duplicates.
        StudentError: If an architecture, its pretrained weights or a folder do not exist.
        WeightError: If a pcd_hub weight is neither on this machine nor published.
    """
    for option, values in (("--models", models), ("--run.seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(
                f"{option} {' '.join(map(str, values))}: expected at least one, and none twice"
            )
    for name in models:
        _check_name(name)


def _check_name(name: str) -> None:
    """Check what is known of a model before it is loaded: its architecture, folder or weight."""
    kind, colon, rest = name.partition(":")
    if colon and kind == "random":
        check_architecture(rest)
    elif colon and kind == "onnx":
        open_onnx(local_path(rest))
    elif colon and kind == "local-dir":
        _check_folder(name, local_path(rest))
    elif not colon and "/" not in name:
        architecture = name.partition("@")[0].partition(".")[0]
        check_architecture(architecture)
        if is_pcd_weight(name):
            _check_weight(name)
        elif name not in (tags := timm.list_pretrained(f"{architecture}.*")) and "." in name:
            raise StudentError(
                f"timm has no pretrained weights {name}{nearest(name, tags)}; use "
                f"random:{architecture} for random weights"
            )


def _check_folder(name: str, folder: Path) -> None:
    if not exists(folder):
        raise StudentError(f"{name}: no such folder; expected an export, or RUN/export")
    if is_pcd_weight(name):
        _check_recorded(name, folder)


def _check_weight(name: str) -> None:
    if folder := find(name):
        _check_recorded(name, folder)
        return
    if name.partition("@")[0] in published_weights() or os.environ.get("PCD_HUB_ORG"):
        return
    raise WeightError(
        f"{name} is neither on this machine nor published; `pcd-hub list` prints the weights"
    )


def _check_recorded(name: str, folder: Path) -> None:
    _check_rgb(name, WeightRecord.from_dict(record_of(folder)))


def _with_random_weights(
    name: str, architecture: str, image_size: int, seed: int, arguments: dict[str, Any]
) -> EvaluatedModel:
    check_architecture(architecture)
    cfg = entry_cfg(architecture)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(
            architecture, **build_arguments(architecture, image_size), **arguments
        )
    return EvaluatedModel(name=name, model=model, mean=cfg.mean, std=cfg.std)


def _teacher(name: str, source: str, image_size: int, arguments: dict[str, Any]) -> EvaluatedModel:
    teacher = load_teacher(source, image_size=image_size)
    facts = teacher.facts
    cfg = {
        **entry_cfg(facts.architecture).to_dict(),
        "state_dict": teacher.grid.model.state_dict(),
    }
    model = timm.create_model(
        facts.architecture,
        pretrained=True,
        pretrained_cfg=cfg,
        **build_arguments(facts.architecture, image_size),
        **arguments,
    )
    return EvaluatedModel(name=name, model=forget_tensors(model), mean=facts.mean, std=facts.std)


def _onnx(name: str, file: str, timm_arguments: dict[str, Any]) -> EvaluatedModel:
    if timm_arguments:
        raise StudentError(f"{name}: an ONNX file cannot be trained; expected a timm model")
    opened = open_onnx(local_path(file))
    return EvaluatedModel(name=name, model=opened.model, mean=opened.mean, std=opened.std)


def is_pcd_weight(name: str) -> bool:
    """Return whether a name of :func:`open_model` is that of a pcd_hub weight."""
    if name.startswith("local-dir:"):
        return exists(local_path(name.removeprefix("local-dir:")) / MANIFEST_FILE)
    return ":" not in name and ("/" in name or store.is_name(name.partition("@")[0]))


def known_sha256(name: str) -> str | None:
    """Return the sha256 of a model's weights file if it is on this machine; None if it is unknown.

    It is known of pcd_hub weights and of local folders.

    Raises:
        WeightError: If the manifest of a pcd_hub weight is damaged.
    """
    local = name.removeprefix("local-dir:")
    if is_pcd_weight(name):
        folder = local_path(local) if local != name else find(name)
        return weights_sha256(folder) if folder else None
    if local != name:
        with suppress(OSError), weights_file(local_path(local)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def _pcd_weight(name: str, arguments: dict[str, Any]) -> EvaluatedModel:
    weight = read_named(name)
    _check_rgb(name, weight.record)
    return _evaluated(name, build_model(weight, **arguments), weight.weights_sha256)


def _check_rgb(name: str, record: WeightRecord) -> None:
    if (bands := recorded_bands(record)) != RGB:
        raise StudentError(
            f"{name} takes images of the bands {' '.join(bands)}; evaluations read RGB images. "
            "Load it with pcd_hub.create_model, and measure it on images that your code reads"
        )


def _architecture(name: str) -> str | None:
    """Return the architecture that ``name`` contains; None if it contains none."""
    if name.startswith("local-dir:"):
        config = local_path(name.removeprefix("local-dir:")) / "config.json"
        try:
            return str(json.loads(config.read_text())["architecture"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # loading it raises the error
    last = name.partition(":")[2] or name
    plain = last.rpartition("/")[2].partition("@")[0].partition(".")[0]
    known = timm.is_model(plain) or not {":", "/"} & set(name)
    return plain if known else None


def _timm_model(name: str, arguments: dict[str, Any]) -> EvaluatedModel:
    with cache_alone_if_unreachable(name) as unreachable:
        try:
            model = create_pretrained(name, **arguments)
        except Exception as error:  # timm, the Hub client and broken files raise many types
            why = unreachable or first_line(error)[:200]
            plain = name.partition(".")[0]
            remedy = "" if ":" in name else f"; use random:{plain} for random weights"
            raise StudentError(
                f"timm cannot load {name} ({type(error).__name__}: {why}){remedy}"
            ) from error
    return _evaluated(name, model, None)


def _evaluated(name: str, model: nn.Module, weights_sha256: str | None) -> EvaluatedModel:
    data_config = resolve_model_data_config(model)
    if (count := len(data_config["mean"])) != 3:
        raise StudentError(f"{name} takes images of {count} bands; evaluations read RGB images")
    return EvaluatedModel(
        name=name,
        model=model,
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        weights_sha256=weights_sha256,
    )
