"""Weights of strangers, as timm loads them: tensors alone, in every version that is supported."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from torch import nn


def create_pretrained(name: str, **arguments: Any) -> nn.Module:
    """``timm.create_model(name, pretrained=True)`` that runs no code out of a file.

    timm before 1.0.26 reads no safetensors by ``local-dir:``, and unpickles what else is there.

    Args:
        name: A name of timm, ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER``.
        **arguments: For ``timm.create_model``.
    """
    weights = Path(name.removeprefix("local-dir:")) / "model.safetensors"
    if name.startswith("local-dir:") and weights.is_file():
        arguments["pretrained_cfg_overlay"] = {"source": "file", "file": str(weights)}
    with _tensors_only():
        return timm.create_model(name, pretrained=True, **arguments)


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
