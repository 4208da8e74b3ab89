"""Weights of strangers, as timm loads them: tensors alone, in every version that is supported."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import load_model_config_from_hf, model_entrypoint
from torch import nn

_MAX_CONFIG_BYTES = 1_000_000
_MAX_LAYERS = 300  # of timm's own, ResNet-RS-420 has most: 139 blocks
_MAX_NUMBER = 65_536
_COUNTS_LAYERS = re.compile("depth|layer|block|stage|repeat")


class Description(NamedTuple):
    """What a model's ``config.json`` tells timm."""

    cfg: Mapping[str, Any]
    """timm's pretrained_cfg."""
    architecture: str
    arguments: Mapping[str, Any]
    """With which the architecture is built."""


def describe(name: str) -> Description | None:
    """The description that ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER`` brings; None of others.

    Raises:
        Exception: Whatever a missing or malformed one leads to.
    """
    scheme, _, place = name.partition(":")
    if scheme == "hf-hub":
        return Description(*load_model_config_from_hf(place))
    if scheme != "local-dir":
        return None
    file = Path(place) / "config.json"
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(f"{file} has more than {_MAX_CONFIG_BYTES} bytes")
    config = json.loads(file.read_text())
    cfg = config.get("pretrained_cfg", config)
    return Description(cfg, config["architecture"], config.get("model_args", {}))


def create_pretrained(name: str, **arguments: Any) -> nn.Module:
    """``timm.create_model(name, pretrained=True)`` that runs no code out of a file.

    timm before 1.0.26 reads no safetensors by ``local-dir:``, and unpickles what else is there.

    Args:
        name: A name of timm, ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER``.
        **arguments: For ``timm.create_model``.

    Raises:
        ValueError: If the model's ``config.json`` asks for more than its weights can fill, or for
            numbers that only serve to exhaust.
        Exception: Whatever timm says.
    """
    weights = Path(name.removeprefix("local-dir:")) / "model.safetensors"
    is_file = name.startswith("local-dir:") and weights.is_file()
    if (described := describe(name)) and described.arguments:
        _check_arguments(described, most_values=weights.stat().st_size if is_file else None)
    if is_file:
        arguments["pretrained_cfg_overlay"] = {"source": "file", "file": str(weights)}
    with _tensors_only():
        return timm.create_model(name, pretrained=True, **arguments)


def _check_arguments(described: Description, *, most_values: int | None) -> None:
    """Bound what is built before its weights are looked at: ``depth: 3000`` takes a minute."""
    for key, value in described.arguments.items():
        found, most = [*_numbers(value)], _MAX_NUMBER
        if _COUNTS_LAYERS.search(key):
            found, most = [sum(found)], _MAX_LAYERS
        for number in found:
            if not number <= most:  # nor NaN
                raise ValueError(f"config.json: model_args: {key} is {number:g}, at most {most}")
    if most_values is None or (count := _count_values(described)) is None:
        return
    if count > most_values:  # a value takes a byte at least
        raise ValueError(
            f"config.json: with its model_args {described.architecture} has {count} values, more "
            f"than its weights of {most_values} bytes can hold"
        )


def _numbers(value: object) -> Iterator[float]:
    match value:
        case bool() | str() | None:
            return
        case int() | float():
            yield abs(value)
        case list() | dict():
            for part in value.values() if isinstance(value, dict) else value:
                yield from _numbers(part)


def _count_values(described: Description) -> int | None:
    """Of the model, built without memory; None if it computes with values when it is built."""
    build, arguments = model_entrypoint(described.architecture), dict(described.arguments)
    try:
        with torch.device("meta"):
            model = build(pretrained=False, **arguments | {"num_classes": 0})
    except (RuntimeError, NotImplementedError):
        return None
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _tensors_only() -> Iterator[None]:
    """``torch.load`` with ``weights_only=True``, whatever its caller says."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})
