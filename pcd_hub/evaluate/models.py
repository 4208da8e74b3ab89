"""A model under test, named by one string.

==============================  ====================================================================
``resnet18.pcd``                one of our weights: from the local store, or published; verified
``ORG/NAME[@REV]``              the same from the Hub
``local-dir:DIR``               an export, verified; or any folder in timm's layout
``resnet18.a1_in1k``            any other name of timm's, with its pretrained weights
``hf-hub:ORG/NAME[@REV]``       the same from a Hub repository, as timm loads it
``random:ARCH``                 any architecture of timm's at random start, drawn from the seed
``teacher:SOURCE``              the backbone of a teacher (``pcd_hub/models/teacher_loading.py``)
==============================  ====================================================================
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

import pcd_hub
from pcd_hub.data.uris import exists, local_path
from pcd_hub.errors import ConfigError, StudentError, first_line
from pcd_hub.models.entries import (
    build_arguments,
    check_architecture,
    entry_cfg,
    forget_tensors,
)
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.models.timm_loading import cache_alone_if_unreachable, create_pretrained
from pcd_hub.weights import store
from pcd_hub.weights.layout import MANIFEST_FILE
from pcd_hub.weights.manifest import weights_sha256

Prepared = TypeVar("Prepared")


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A timm model without a head, and the pixel values it expects."""

    name: str
    """As it was asked for; the row of tables."""
    model: nn.Module
    mean: tuple[float, ...]
    """Of pixel values in [0, 1], per channel."""
    std: tuple[float, ...]
    weights_sha256: str | None = None
    """Of the weights file, if it is one of ours."""


def open_model(
    name: str, *, image_size: int = 224, seed: int = 0, **timm_arguments: Any
) -> EvaluatedModel:
    """Build a model under test.

    Args:
        name: One of the forms at the top of this file.
        image_size: Height and width in pixels of what it will see; matters only to architectures
            of a fixed size.
        seed: Of a random start. Anything else is the same for every seed.
        **timm_arguments: As ``features_only`` or ``out_indices``, for ``timm.create_model``.

    Raises:
        StudentError: If there is no such model, or no weights of it.
        TeacherError: If ``teacher:SOURCE`` cannot be loaded.
        WeightError: If a weight of ours is missing or damaged.
        HubError: If the Hub refuses it or cannot be reached.
    """
    arguments = {"num_classes": 0, **timm_arguments}
    kind, colon, rest = name.partition(":")
    if colon and kind == "random":
        return _random_start(name, rest, image_size, seed, arguments)
    if colon and kind == "teacher":
        return _teacher(name, rest, image_size, arguments)
    ours = _is_ours(name)
    if architecture := _architecture(name):
        check_architecture(architecture)
        arguments = {**build_arguments(architecture, image_size), **arguments}
    return _ours(name, arguments) if ours else _of_timm(name, arguments)


def for_each_seed(
    name: str,
    seeds: Sequence[int],
    prepare: Callable[[EvaluatedModel], Prepared],
    *,
    image_size: int,
) -> Iterator[tuple[int, EvaluatedModel, Prepared]]:
    """The model and what ``prepare`` makes of it, by seed.

    A random start is drawn and prepared anew for every seed, anything else once.
    """
    under_test = open_model(name, image_size=image_size, seed=seeds[0])
    prepared = prepare(under_test)
    for seed in seeds:
        if name.startswith("random:") and seed != seeds[0]:
            under_test = open_model(name, image_size=image_size, seed=seed)
            prepared = prepare(under_test)
        yield seed, under_test, prepared


def check_models(models: Sequence[str], seeds: Sequence[int]) -> None:
    """Check what an evaluation was asked for.

    Raises:
        ConfigError: If there is no model or seed, or one is named twice.
    """
    for what, named in (("--models", models), ("--seeds", seeds)):
        if not named or len(set(named)) < len(named):
            raise ConfigError(
                f"{what} {' '.join(map(str, named))}: name at least one, and none twice"
            )


def _random_start(
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


def _is_ours(name: str) -> bool:
    if name.startswith("local-dir:"):
        return exists(local_path(name.removeprefix("local-dir:")) / MANIFEST_FILE)
    return ":" not in name and ("/" in name or store.is_name(name.partition("@")[0]))


def _ours(name: str, arguments: dict[str, Any]) -> EvaluatedModel:
    model = pcd_hub.create_model(name, **arguments)
    local = name.removeprefix("local-dir:")
    folder = local_path(local) if local != name else pcd_hub.where(name)
    return _described(name, model, weights_sha256(folder) if folder else None)


def _architecture(name: str) -> str | None:
    """As far as it can be told without loading: not of a repository under a free name."""
    if name.startswith("local-dir:"):
        config = local_path(name.removeprefix("local-dir:")) / "config.json"
        try:
            return str(json.loads(config.read_text())["architecture"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # whoever loads it says what is wrong
    last = name.partition(":")[2] or name
    plain = last.rpartition("/")[2].partition("@")[0].partition(".")[0]
    known = timm.is_model(plain) or not {":", "/"} & set(name)
    return plain if known else None


def _of_timm(name: str, arguments: dict[str, Any]) -> EvaluatedModel:
    with cache_alone_if_unreachable(name) as silence:
        try:
            model = create_pretrained(name, **arguments)
        except Exception as error:  # whatever timm, the Hub's client or a file says
            why = silence or first_line(error)[:200]
            plain = name.partition(".")[0]
            without = "" if ":" in name else f"; random:{plain} is it without weights"
            raise StudentError(
                f"timm cannot load {name} ({type(error).__name__}: {why}){without}"
            ) from error
    return _described(name, model, None)


def _described(name: str, model: nn.Module, weights_sha256: str | None) -> EvaluatedModel:
    expected = resolve_model_data_config(model)
    return EvaluatedModel(
        name=name,
        model=model,
        mean=tuple(expected["mean"]),
        std=tuple(expected["std"]),
        weights_sha256=weights_sha256,
    )
