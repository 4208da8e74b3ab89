"""Weights of strangers, as timm loads them: tensors alone, in every version that is supported."""

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import get_session
from timm.models import model_entrypoint
from timm.models._hub import download_from_hf
from torch import nn

from pcd_hub.errors import first_line
from pcd_hub.files.read import check_is_file, read_bounded
from pcd_hub.models.pickles import read_saved

log = logging.getLogger("pcd_hub")

_MAX_CONFIG_BYTES = 1_000_000
_MAX_LAYERS = 300  # of timm's own, ResNet-RS-420 has most: 139 blocks
_MAX_NUMBER = 65_536
_MOST_VALUES = 7_000_000_000  # of timm's own, DINOv3's ViT-7B has most: 6.7
_TIMEOUT_SECONDS = 10.0
_PREFERRED = (  # by timm 1.0.21 to 1.0.31, and then the suffixes
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")
_COUNTS_LAYERS = re.compile("depth|layer|block|stage|repeat")

PROCESS_STATE = threading.RLock()
"""Held by the thread that has changed the environment's variables or torch's classes."""


class Description(NamedTuple):
    """What a model's ``config.json`` tells timm."""

    cfg: Mapping[str, Any]
    """timm's pretrained_cfg."""
    architecture: str
    arguments: Mapping[str, Any]
    """With which the architecture is built."""


@contextmanager
def cache_alone_if_unreachable(name: str) -> Iterator[str]:
    """Let the client use its cache alone if the Hub does not answer.

    It would try, and log it, for a minute. One thread at a time.

    Args:
        name: As for :func:`create_pretrained`; one that needs no Hub asks nobody.

    Yields:
        Why the Hub is not asked, or nothing if it is.
    """
    reason = "" if constants.HF_HUB_OFFLINE or not _needs_hub(name) else _silence_of_the_hub()
    with PROCESS_STATE:
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or bool(reason)
        try:
            yield reason
        finally:
            constants.HF_HUB_OFFLINE = before


def describe(name: str) -> Description | None:
    """The description that ``hf-hub:ORG/NAME[@REV]`` or ``local-dir:FOLDER`` brings; else None.

    Raises:
        Exception: Whatever a missing or malformed one leads to.
    """
    scheme, place = _source(name)
    match scheme:
        case "hf-hub":
            file = Path(download_from_hf(place, "config.json"))
        case "local-dir":
            file = Path(place) / "config.json"
        case _:
            return None
    config = json.loads(read_bounded(file, _MAX_CONFIG_BYTES))
    cfg = config.get("pretrained_cfg", config)
    return Description(cfg, config["architecture"], config.get("model_args", {}))


def create_pretrained(name: str, **arguments: Any) -> nn.Module:
    """``timm.create_model(name, pretrained=True)`` that runs no code out of a file.

    timm before 1.0.26 reads no safetensors by ``local-dir:``; torch reads more out of a pickle than
    is in it (``pickles``), so that of a folder is looked through. That of a repository is not.

    Args:
        name: A name of timm, ``hf-hub:ORG/NAME[@REV]`` or ``local-dir:FOLDER``.
        **arguments: For ``timm.create_model``.

    Raises:
        ValueError: If the model's ``config.json`` asks for more than its weights can fill (than
            timm's largest model has, where their size cannot be had: of a repository without
            ``model_args``, or offline), or for numbers that only serve to exhaust.
        Exception: Whatever timm says.
    """
    scheme, place = _source(name)
    if described := describe(name):
        _check_arguments(described.arguments)
        if scheme == "local-dir":
            file = _weights_in(Path(place))
            sizes = [file.stat().st_size]
            arguments["pretrained_cfg_overlay"] = {"source": "file", "file": str(file)}
        else:
            sizes = _listed_sizes(place) if described.arguments else []
        _check_size(described, most_values=min(max(sizes, default=_MOST_VALUES), _MOST_VALUES))
    with _tensors_only():
        return timm.create_model(name, pretrained=True, **arguments)


def _needs_hub(name: str) -> bool:
    match _source(name)[0]:
        case "hf-hub":
            return True
        case "local-dir":
            return False
        case _:
            with suppress(RuntimeError):  # a tag that timm does not know, as it will say itself
                return bool((cfg := timm.get_pretrained_cfg(name)) and cfg.hf_hub_id)
            return False


def _silence_of_the_hub() -> str:
    """Why the Hub does not answer; nothing if it does, whatever it answers."""
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # of two libraries
        return f"the Hub does not answer ({first_line(error)})"
    return ""


def _source(name: str) -> tuple[str, str]:
    """Scheme and place, as timm takes them apart."""
    scheme, _, place = name.partition(":")
    return scheme.lower().replace("_", "-"), place


def _weights_in(folder: Path) -> Path:
    """The file that timm would take, looked through if torch saved it."""
    names = sorted(file.name for file in folder.iterdir())
    found = [name for name in _PREFERRED if name in names]
    found += [name for suffix in _SUFFIXES for name in names if name.endswith(suffix)]
    if not found:
        raise FileNotFoundError(f"{folder} holds no weights: no file *{', *'.join(_SUFFIXES)}")
    file = folder / found[0]
    check_is_file(file)
    if file.suffix != ".safetensors":
        read_saved(file)
    return file


def _listed_sizes(place: str) -> list[int]:
    """Bytes of a repository's weights as the Hub lists them; none if it cannot be asked."""
    repo, _, revision = place.partition("@")
    try:
        info = HfApi().model_info(
            repo, revision=revision or None, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
    except Exception as error:  # of three libraries; its files may lie in the cache
        log.info("the size of %s is not known (%s)", place, first_line(error))
        return []
    files = [file for file in info.siblings or () if file.rfilename.endswith(_SUFFIXES)]
    return [file.size or 0 for file in files]


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Bound what is built before its weights are looked at: ``depth: 3000`` takes a minute."""
    for key, value in arguments.items():
        found, most = [*_numbers(value)], _MAX_NUMBER
        if _COUNTS_LAYERS.search(key):
            found, most = [sum(found)], _MAX_LAYERS
        for number in found:
            if not number <= most:  # nor NaN
                raise ValueError(f"config.json: model_args: {key} is {number:g}, at most {most}")


def _check_size(described: Description, *, most_values: int) -> None:
    """Hold the model that would be built against its weights, and its buffers against timm's."""
    model = _without_memory(described)
    if model is None:
        return
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > most_values:  # a value takes a byte at least
        known = f"its weights of {most_values} bytes can hold"
        raise ValueError(
            f"config.json: with its model_args {described.architecture} has {count} values, more "
            f"than {known if most_values < _MOST_VALUES else f'{_MOST_VALUES}, the most here'}"
        )
    computed = sum(buffer.numel() for buffer in model.buffers())
    if computed > _MOST_VALUES:
        raise ValueError(
            f"config.json: {described.architecture} computes {computed} values before it is used, "
            f"at most {_MOST_VALUES}; its input_size or img_size is too large"
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


def _without_memory(described: Description) -> nn.Module | None:
    """The model that timm would build; None if it computes with values when it is built."""
    build, arguments = model_entrypoint(described.architecture), dict(described.arguments)
    arguments |= {"num_classes": 0}
    try:
        with torch.device("meta"):
            return build(pretrained=False, pretrained_cfg=dict(described.cfg), **arguments)
    except (RuntimeError, NotImplementedError):
        return None


@contextmanager
def _tensors_only() -> Iterator[None]:
    """``torch.load`` with ``weights_only=True``, whatever its caller says; a thread at a time."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    with PROCESS_STATE:
        before = {name: os.environ.pop(name, None) for name in names}
        os.environ[names[0]] = "1"
        try:
            yield
        finally:
            del os.environ[names[0]]
            os.environ.update({name: value for name, value in before.items() if value is not None})
