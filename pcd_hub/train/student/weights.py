"""Load the weights that a student starts from: ``--student.weights``.

==========================  ========================================================================
``none``                    random weights
``shipped``                 the weight of the architecture that pcd_hub ships; verified
``auto``                    ``shipped`` or ``none``: decided before (``own_images/settings.py``)
``pretrained``              timm's default weights of the architecture
``resnet18.a1_in1k``        timm's weights of this tag
``resnet18.pcd``            a pcd_hub weight, local, published or shipped; verified
``ORG/NAME[@REV]``          a pcd_hub weight in a Hub repository; verified
``hf-hub:ORG/NAME[@REV]``   a timm model in a Hub repository
``local-dir:DIR``           a run of pcd_hub or its export, verified; or a folder in timm's layout
``FILE``                    a checkpoint with timm's keys (``pcd_hub.models.backbone_in_file.py``)
==========================  ========================================================================
"""

import dataclasses
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import adapt_input_conv, get_pretrained_cfg
from torch import Tensor, nn

from pcd_hub.data.multiband.names import RGB
from pcd_hub.data.sources.uris import is_dir, is_file, local_path
from pcd_hub.errors import PCDHubError, StudentError, TeacherError, first_line
from pcd_hub.files.strict_json import printable
from pcd_hub.image_size import ImageSize
from pcd_hub.models.backbone_in_file import find_backbone
from pcd_hub.models.entries import build_arguments, entry_cfg
from pcd_hub.models.tensor_files import check_tensors, load_tensor_file, tensors_sha256
from pcd_hub.models.timm_loading import (
    cache_alone_if_unreachable,
    create_pretrained,
    create_with_state,
    read_config,
)
from pcd_hub.train.student.bands import check_same_bands, warn_of_other_bands
from pcd_hub.train.student.normalisation import adapt_normalisation
from pcd_hub.weights import shipped, store
from pcd_hub.weights.catalogue import finished_export
from pcd_hub.weights.create import build_model, read_named
from pcd_hub.weights.hub.published import reference_of
from pcd_hub.weights.input_bands import InputBands, recorded_bands
from pcd_hub.weights.layout import MANIFEST_FILE
from pcd_hub.weights.manifest import record_sha256
from pcd_hub.weights.record import NOT_STATED

log = logging.getLogger("pcd_hub")

EXPECTED = (
    "none, shipped, auto, pretrained, a weight's name, hf-hub:ORG/NAME, local-dir:DIR or a file "
    "(.safetensors, .pth, .pt, .bin, .ckpt)"
)
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartWeight:
    """The weights that a student starts from, for its record."""

    source: str
    """The value of ``--student.weights``; for ``pretrained``, the name with its tag."""
    name: str
    """Short name, for tables."""
    sha256: str = ""
    """Hash of the names and values of all tensors, as loaded into the student."""
    license: str = NOT_STATED
    """The licence given by the source."""
    hub_id: str = ""
    """The repository on the Hub, ``ORG/NAME``, if the source is one."""
    file_sha256: str = ""
    """Hash of the checkpoint file."""
    record_sha256: str = ""
    """Hash of the pcd_hub weight's record."""
    unused: str = ""
    """Summary of the file's tensors that the student does not have."""

    def to_dict(self) -> dict[str, str]:
        """Return the known facts as a plain dict."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}


class _Loaded(NamedTuple):
    facts: StartWeight
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bands: tuple[str, ...] = RGB
    band_range: tuple[float, ...] = ()


def load_start(
    student: nn.Module,
    weights: str,
    *,
    architecture: str,
    image_size: ImageSize,
    bands: InputBands | None = None,
    band_range: tuple[float, ...] = (),
) -> StartWeight | None:
    """Load the weights that a student starts from into it; the random state is unchanged.

    Weights of RGB images are adapted to another normalisation, or by timm to other bands, which is
    logged. Weights of other bands are for the same ones alone.

    Args:
        student: The student, a headless timm model.
        weights: One of the forms at the top of this file.
        architecture: The student's architecture.
        image_size: Height and width of its images in pixels.
        bands: Bands of its images; red, green and blue if not given.
        band_range: Values of these bands that become 0 and 1; empty for the range of their type.

    Returns:
        Facts about the weights; None for ``none``.

    Raises:
        StudentError: If the weights do not exist, or are of another architecture or other bands.
        WeightError: If a pcd_hub weight is missing or damaged.
        HubError: If the Hub refuses access or cannot be reached.
    """
    if weights == "none":
        return None
    arguments = {**build_arguments(architecture, image_size), "num_classes": 0}
    bands = bands or InputBands.rgb(architecture)
    if len(bands.names) != len(RGB):
        arguments["in_chans"] = len(bands.names)
    with torch.random.fork_rng(devices=[]), _naming(weights):
        loaded = _load(student, weights, architecture, arguments, bands.names)
        _check_normalisation(loaded)
        try:
            student.load_state_dict(loaded.state, strict=True)
        except RuntimeError as error:  # a variant of the architecture, by its model_args
            reason = str(error).splitlines()[-1].strip()[:200]
            raise StudentError(f"it does not fit timm's {architecture}: {reason}") from error
    digest = tensors_sha256(student.state_dict())
    if bands.names != RGB:
        own = InputBands(loaded.bands, loaded.mean, loaded.std)
        warn_of_other_bands(own, loaded.band_range, bands, band_range)
    elif len(loaded.mean) == len(RGB):
        adapt_normalisation(student, entry_cfg(architecture), mean=loaded.mean, std=loaded.std)
    facts = dataclasses.replace(loaded.facts, sha256=digest)
    log.info("the student starts from %s (licence: %s)", facts.name, facts.license)
    return facts


@contextmanager
def _naming(weights: str) -> Iterator[None]:
    """Prepend the option to an error message."""
    option = f"--student.weights {printable(weights)[:200]}"
    try:
        yield
    except PCDHubError as error:
        raise type(error)(f"{option}: {error}") from error


def _load(
    student: nn.Module,
    weights: str,
    architecture: str,
    arguments: dict[str, Any],
    bands: tuple[str, ...],
) -> _Loaded:
    scheme, colon, rest = weights.partition(":")
    if colon and scheme == "hf-hub":
        return _from_timm(weights, architecture, arguments)
    if colon and scheme == "timm":
        weights = rest
    is_folder = bool(colon) and scheme == "local-dir"
    if weights != "shipped" and not is_folder:
        if is_file(local_path(weights)) or weights.endswith(FILE_SUFFIXES):
            return _from_file(student, weights, architecture, arguments)
        is_folder = is_dir(local_path(weights))
    if is_folder:
        return _from_folder(weights.removeprefix("local-dir:"), architecture, arguments, bands)
    name = weights.partition("@")[0]
    if weights == "shipped" or store.is_name(name) or _REPO.fullmatch(name):
        return _from_pcd_hub(weights, architecture, arguments, bands)
    name = _name_with_tag(weights, architecture)
    if store.is_name(name):
        return _from_pcd_hub(name, architecture, arguments, bands)
    return _from_timm(name, architecture, arguments)


def _check_normalisation(loaded: _Loaded) -> None:
    """Check that mean and std, which a stranger's config.json may hold, are usable numbers."""
    values = (*loaded.mean, *loaded.std)
    numbers = all(type(value) in {int, float} and abs(value) < 1e3 for value in values)
    if not numbers or len(loaded.mean) != len(loaded.std) or min(loaded.std, default=0) <= 0:
        raise StudentError(
            f"its images have mean {printable(str(loaded.mean))[:80]} and std "
            f"{printable(str(loaded.std))[:80]}; expected a number for each channel, std > 0"
        )


def _from_folder(
    folder: str, architecture: str, arguments: dict[str, Any], bands: tuple[str, ...]
) -> _Loaded:
    path = local_path(folder)
    if is_file(path / "record.json"):  # a finished run
        folder = str(finished_export(path))
    if is_file(local_path(folder) / MANIFEST_FILE):
        return _from_pcd_hub(f"local-dir:{folder}", architecture, arguments, bands)
    return _from_timm(f"local-dir:{path}", architecture, arguments)


def _from_pcd_hub(
    name: str, architecture: str, arguments: dict[str, Any], bands: tuple[str, ...]
) -> _Loaded:
    place = f"local-dir:{_shipped(architecture)}" if name == "shipped" else name
    weight = read_named(place)
    _check_architecture(weight.config["architecture"], architecture)
    own_bands = recorded_bands(weight.record)
    check_same_bands(own_bands, bands)
    model = build_model(weight, **arguments)
    is_local = place.startswith("local-dir:") or (store.is_name(name) and store.where(name))
    hub = None if is_local else reference_of(name)
    facts = StartWeight(
        source=name,
        name=weight.record.name,
        license=weight.record.licenses.get("weights", NOT_STATED),
        hub_id=hub[0].partition("@")[0] if hub else "",
        record_sha256=record_sha256(weight.record.to_dict()),
    )
    cfg = weight.config["pretrained_cfg"]
    return _Loaded(
        facts,
        model.state_dict(),
        tuple(cfg["mean"]),
        tuple(cfg["std"]),
        own_bands,
        tuple(weight.record.data.get("band_range") or ()),
    )


def _shipped(architecture: str) -> Path:
    folder = shipped.of_architecture(architecture)
    if folder is None:
        raise StudentError(f"{shipped.none_of(architecture)}; use pretrained for timm's, or none")
    return folder


def _name_with_tag(weights: str, architecture: str) -> str:
    """Return the name with its tag of the weights that ``pretrained`` or a name stands for.

    Raises:
        StudentError: If timm has no such weights, or they are of another architecture.
    """
    name = architecture if weights == "pretrained" else weights
    if not timm.is_model(name.partition(".")[0]):
        raise StudentError(f"no such file or weight; expected {EXPECTED}")
    _check_architecture(name.partition(".")[0], architecture)
    default = get_pretrained_cfg(architecture)
    if name == architecture and default is not None:
        name = f"{architecture}.{default.tag}"
    known = timm.list_pretrained(f"{architecture}.*")
    if name not in known and not store.is_name(name):
        choice = f"one of {', '.join(known)}" if known else "none, as it has none for this one"
        raise StudentError(f"timm has no weights {name}; expected {choice}, or a file")
    return name


def _from_timm(name: str, architecture: str, arguments: dict[str, Any]) -> _Loaded:
    with cache_alone_if_unreachable(name) as unreachable:
        try:
            config = read_config(name)
            found = config.architecture if config else architecture
            model = create_pretrained(name, **arguments) if found == architecture else None
        except Exception as error:  # timm, the Hub client and broken files raise many types
            why = f"{unreachable}, nor its cache ({type(error).__name__})" if unreachable else None
            raise StudentError(
                f"cannot load it: {why or first_line(error).rstrip('.')[:200]}; check the name and "
                "the network, or use a file"
            ) from error
    _check_architecture(found, architecture)
    assert model is not None
    cfg: Any = model.pretrained_cfg
    scheme, colon, place = name.partition(":")
    hub_id = (place if scheme == "hf-hub" else "") if colon else str(cfg.get("hf_hub_id") or "")
    repo = hub_id.partition("@")[0]
    facts = StartWeight(
        source=name,
        name=name if not colon or scheme == "hf-hub" else Path(place).resolve().name,
        license=str(cfg.get("license") or NOT_STATED),
        hub_id=repo if _REPO.fullmatch(repo) else "",
    )
    return _Loaded(facts, model.state_dict(), _as_tuple(cfg["mean"]), _as_tuple(cfg["std"]))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _from_file(
    student: nn.Module, weights: str, architecture: str, arguments: dict[str, Any]
) -> _Loaded:
    file = local_path(weights)
    if not is_file(file):
        raise StudentError(f"no such file; expected {EXPECTED}")
    try:
        loaded, content = load_tensor_file(file)
        found = find_backbone(loaded, student.state_dict(), what=architecture)
        check_tensors(found.state, file, size=len(content))
    except TeacherError as error:  # the readers are those of teachers
        raise StudentError(str(error)) from error
    state = _adapted(found.state, student, architecture, arguments)
    log.info(
        "%s: the backbone is below %s; not used: %s",
        *(printable(weights), printable(found.prefix) or "the root", found.unused or "nothing"),
    )
    facts = StartWeight(
        source=weights,
        name=printable(file.name),
        file_sha256=hashlib.sha256(content).hexdigest(),
        unused=found.unused,
    )
    cfg = entry_cfg(architecture)
    return _Loaded(facts, state, cfg.mean, cfg.std)


def _adapted(
    state: dict[str, Tensor], student: nn.Module, architecture: str, arguments: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the weights with the student's shapes, as timm adapts channels and image size.

    Raises:
        StudentError: If the shapes differ in another way.
    """
    expected = student.state_dict()
    state = {**expected, **state}  # for counters that the file lacks
    cfg, in_chans = entry_cfg(architecture), arguments.get("in_chans", 3)
    first = cfg.first_conv if isinstance(cfg.first_conv, tuple) else (cfg.first_conv,)
    for name in first:
        key = f"{name}.weight"
        if key in state and state[key].shape[1:2] == (3,) and in_chans != 3:
            state[key] = adapt_input_conv(in_chans, state[key].float())
            log.info("%s is adapted from 3 to %d input channels", key, in_chans)
    if _unlike(state, expected) and cfg.fixed_input_size:
        with suppress(RuntimeError, ValueError):  # reported below
            model = create_with_state(architecture, state, **arguments)
            state = model.state_dict()
    if unlike := _unlike(state, expected):
        raise StudentError(
            f"{len(unlike)} of its tensors differ from {architecture}'s (first "
            f"{'; '.join(unlike[:3])}); is it another architecture or image size?"
        )
    return state


def _unlike(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Describe the tensors whose shape, or kind of number, is not the expected one."""
    return [
        f"{key} {tuple(state[key].shape)} {str(state[key].dtype).removeprefix('torch.')}, expected "
        f"{tuple(value.shape)}"
        for key, value in expected.items()
        if state[key].shape != value.shape
        or (value.is_floating_point() and not state[key].is_floating_point())
    ]


def _check_architecture(found: str, expected: str) -> None:
    if found != expected:
        raise StudentError(
            f"it is a {printable(found)[:80]}, --student.arch is {expected}; expected weights of "
            f"{expected}, or --student.arch {printable(found)[:80]}"
        )
