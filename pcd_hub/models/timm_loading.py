"""Load pretrained timm models from untrusted files, without running code or filling memory."""

import json
import logging
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
from timm.models import clean_state_dict, model_entrypoint
from timm.models._hub import download_from_hf
from torch import Tensor, nn

from pcd_hub.errors import TeacherError, first_line
from pcd_hub.files.read import check_is_file, read_bounded
from pcd_hub.image_size import format_size, height_width
from pcd_hub.models.entries import entry_cfg, forget_tensors
from pcd_hub.models.torch_files import read_torch_file

log = logging.getLogger("pcd_hub")

_MAX_CONFIG_BYTES = 1_000_000
_MAX_LAYERS = 300  # timm's maximum is ResNet-RS-420: 139 blocks
_MAX_NUMBER = 65_536
_MAX_VALUES = 7_000_000_000  # timm's maximum is DINOv3's ViT-7B: 6.7 billion
TIMEOUT_SECONDS = 10.0
"""Longest wait for an answer of the Hub."""
_PREFERRED = (  # in the order of timm 1.0.26 to 1.0.31, followed by suffixes
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
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # in timm's order
_COUNTS_LAYERS = re.compile("depth|layer|block|stage|repeat")
_PROCESS_LOCK = threading.RLock()
"""Held while a thread patches huggingface_hub's constants or a method of nn.Module."""


class TimmConfig(NamedTuple):
    """Content of a model's ``config.json``."""

    pretrained_cfg: Mapping[str, Any]
    architecture: str
    model_args: Mapping[str, Any]


@contextmanager
def cache_alone_if_unreachable(name: str) -> Iterator[str]:
    """Make huggingface_hub use only its cache inside the block if the Hub does not respond.

    Otherwise it retries for a minute, and logs each retry. One thread at a time.

    Args:
        name: A name for :func:`create_pretrained`; the Hub is contacted only if it is needed.

    Yields:
        The reason why the Hub is not used; an empty string if it is used.
    """
    reason = "" if constants.HF_HUB_OFFLINE or not _needs_hub(name) else probe_hub()
    with _PROCESS_LOCK:
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or bool(reason)
        try:
            yield reason
        finally:
            constants.HF_HUB_OFFLINE = before


def read_config(name: str) -> TimmConfig | None:
    """Return the config of ``hf-hub:ORG/NAME[@REV]`` or ``local-dir:FOLDER``; None for others.

    Raises:
        Exception: If the config is missing or malformed; the type depends on the cause.
    """
    scheme, place = _split(name)
    match scheme:
        case "hf-hub":
            file = Path(download_from_hf(place, "config.json"))
        case "local-dir":
            file = Path(place) / "config.json"
        case _:
            return None
    config = json.loads(read_bounded(file, _MAX_CONFIG_BYTES))
    if "architecture" not in config:
        is_run = scheme == "local-dir" and (Path(place) / "export").is_dir()
        remedy = f"it is a run, use {name}/export" if is_run else "expected a folder saved by timm"
        raise TeacherError(f"{name}: its config.json names no architecture; {remedy}")
    pretrained_cfg = config.get("pretrained_cfg", config)
    return TimmConfig(pretrained_cfg, config["architecture"], config.get("model_args", {}))


def create_pretrained(name: str, **arguments: Any) -> nn.Module:
    """Call ``timm.create_model(name, pretrained=True)``; every weight must be in the file.

    timm uses ``torch.load(weights_only=True)``, which runs no code but has other risks, described
    in ``torch_files``. Pickles in a local folder are therefore read by ``torch_files``; pickles on
    the Hub are not.

    Args:
        name: A timm name, ``hf-hub:ORG/NAME[@REV]`` or ``local-dir:FOLDER``.
        **arguments: Further arguments for ``timm.create_model``.

    Raises:
        ValueError: If weights are missing from the file, or ``config.json`` describes a model that
            is larger than its weights, or than timm's largest model if the size of the weights is
            unknown (offline, or a repository without ``model_args``).
        Exception: Any other error of timm.
    """
    scheme, place = _split(name)
    name = f"{scheme}:{place}" if scheme == "local-dir" else name
    if config := read_config(name):
        _check_arguments(config.model_args)
        _check_image_size(config.model_args, arguments)
        if scheme == "local-dir":
            file = weights_file(Path(place))
            _check_size(config, [file.stat().st_size])
            arguments["pretrained_cfg_overlay"] = _overlay(file)
        else:
            _check_size(config, _hub_file_sizes(place) if config.model_args else [])
    with unmatched_keys() as unmatched:
        model = timm.create_model(name, pretrained=True, **arguments)
    if missing := unmatched.missing:
        raise ValueError(f"{len(missing)} weights are not in its file ({', '.join(missing[:3])})")
    return forget_tensors(model)


def create_with_state(
    architecture: str, state: Mapping[str, Tensor], **arguments: Any
) -> nn.Module:
    """Build a timm model with these weights; timm resamples position embeddings to ``img_size``.

    Args:
        architecture: A timm architecture.
        state: Its weights, with timm's keys; every weight must be there.
        **arguments: Arguments for ``timm.create_model``, such as ``num_classes=0``.

    Raises:
        ValueError: If weights are missing.
        Exception: Any other error of timm, such as for unlike shapes.
    """
    # Without first_conv, no timm adapts the input channels of these weights.
    cfg = entry_cfg(architecture).to_dict() | {"state_dict": dict(state), "first_conv": None}
    with unmatched_keys() as unmatched:
        model = timm.create_model(architecture, pretrained=True, pretrained_cfg=cfg, **arguments)
    if missing := unmatched.missing:
        raise ValueError(f"{len(missing)} weights are missing ({', '.join(missing[:3])})")
    return forget_tensors(model)


def _needs_hub(name: str) -> bool:
    match _split(name)[0]:
        case "hf-hub":
            return True
        case "local-dir":
            return False
        case _:
            with suppress(RuntimeError):  # an unknown tag, which timm will report
                return bool((cfg := timm.get_pretrained_cfg(name)) and cfg.hf_hub_id)
            return False


def probe_hub() -> str:
    """Return the reason why the Hub does not respond; an empty string if it does."""
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # from requests or httpx
        return f"the Hub does not answer ({first_line(error)})"
    return ""


def _split(name: str) -> tuple[str, str]:
    """Split a name into its scheme and the rest, as timm does; ``~`` is the home folder."""
    scheme, _, place = name.partition(":")
    scheme = scheme.lower().replace("_", "-")
    return scheme, str(Path(place).expanduser()) if scheme == "local-dir" else place


def weights_file(folder: Path) -> Path:
    """Return the file that timm would load from a folder."""
    names = sorted(file.name for file in folder.iterdir())
    candidates = [name for name in _PREFERRED if name in names]
    candidates += [name for suffix in _SUFFIXES for name in names if name.endswith(suffix)]
    if not candidates:
        raise FileNotFoundError(f"{folder} contains no weights: no file *{', *'.join(_SUFFIXES)}")
    check_is_file(folder / candidates[0])
    return folder / candidates[0]


def _overlay(file: Path) -> dict[str, Any]:
    """Return the cfg overlay that makes timm load this file without ``torch.load``."""
    if file.suffix == ".safetensors":
        return {"source": "file", "file": str(file)}
    loaded, _ = read_torch_file(file)
    for key in _CONTAINERS:
        if loaded.get(key) is not None:
            loaded = loaded[key]
            break
    return {"source": "", "state_dict": clean_state_dict(loaded)}


def _hub_file_sizes(place: str) -> list[int]:
    """Return the sizes of a repository's weights in bytes; empty if they cannot be listed."""
    repo, _, revision = place.partition("@")
    try:
        info = HfApi().model_info(
            repo, revision=revision or None, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    except Exception as error:  # depends on the HTTP library; the files may be cached
        log.info("the size of %s is unknown (%s)", place, first_line(error))
        return []
    files = [file for file in info.siblings or () if file.rfilename.endswith(_SUFFIXES)]
    return [file.size or 0 for file in files]


def _check_arguments(model_args: Mapping[str, Any]) -> None:
    """Check the model's size before building it: ``depth: 3000`` would take a minute."""
    for key, value in model_args.items():
        numbers, most = [*_numbers(value)], _MAX_NUMBER
        if _COUNTS_LAYERS.search(key):
            numbers, most = [sum(numbers)], _MAX_LAYERS
        for number in numbers:
            if not number <= most:  # true for NaN as well
                raise ValueError(f"config.json: model_args: {key} is {number:g}, at most {most}")


def _check_image_size(model_args: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Reject a resize of non-square position embeddings, which timm 1.0.26 takes as square."""
    own = model_args.get("img_size")
    size = arguments.get("img_size", own)
    if isinstance(own, list) and height_width(own) != height_width(size):
        raise ValueError(
            f"its position embeddings are for {format_size(own)} px, and not every timm can resize "
            f"embeddings that are not square: expected that size, found {format_size(size)}"
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


def _check_size(config: TimmConfig, file_sizes: list[int]) -> None:
    """Check the model's number of values against the file size and timm's largest model."""
    model = _build_on_meta(config)
    if model is None:
        return
    most = min(max(file_sizes, default=_MAX_VALUES), _MAX_VALUES)  # a value takes at least one byte
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > most:
        known = f"its weights of {most} bytes can hold"
        raise ValueError(
            f"config.json: with its model_args {config.architecture} has {count} values, more than "
            f"{known if most < _MAX_VALUES else f'the {_MAX_VALUES} allowed'}"
        )
    computed = sum(buffer.numel() for buffer in model.buffers())
    if computed > _MAX_VALUES:
        raise ValueError(
            f"config.json: {config.architecture} computes {computed} values before it is used, "
            f"at most {_MAX_VALUES}; its input_size or img_size is too large"
        )


def _build_on_meta(config: TimmConfig) -> nn.Module | None:
    """Build the model on the meta device; None if its constructor needs real values."""
    build, arguments = model_entrypoint(config.architecture), dict(config.model_args)
    arguments |= {"num_classes": 0}
    try:
        with torch.device("meta"):
            return build(pretrained=False, pretrained_cfg=dict(config.pretrained_cfg), **arguments)
    except (RuntimeError, NotImplementedError):
        return None


class UnmatchedKeys(NamedTuple):
    """Keys of ``load_state_dict`` calls that were not matched."""

    missing: list[str]
    unexpected: list[str]


@contextmanager
def unmatched_keys() -> Iterator[UnmatchedKeys]:
    """Collect the unmatched keys of this thread's ``load_state_dict`` calls inside the block.

    timm only logs them. One thread at a time.
    """
    unmatched = UnmatchedKeys([], [])
    this_thread = threading.get_ident()
    with _PROCESS_LOCK:
        load_state_dict = nn.Module.load_state_dict

        def recording(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = load_state_dict(self, *args, **kwargs)
            if threading.get_ident() == this_thread:
                unmatched.missing.extend(result.missing_keys)
                unmatched.unexpected.extend(result.unexpected_keys)
            return result

        nn.Module.load_state_dict = recording
        try:
            yield unmatched
        finally:
            nn.Module.load_state_dict = load_state_dict
