"""A checkpoint file of any timm architecture: ``timm:ARCH[.TAG]:FILE``."""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from pcd_hub.errors import StudentError, TeacherError, first_line
from pcd_hub.image_size import ImageSize
from pcd_hub.models.backbone_in_file import split_at_prefix
from pcd_hub.models.entries import build_skeleton, forget_tensors
from pcd_hub.models.teacher_sources.parts import TeacherParts, check_architecture, has_fixed_size
from pcd_hub.models.tensor_files import State, check_tensors, load_tensor_file
from pcd_hub.models.timm_loading import unmatched_keys

log = logging.getLogger("pcd_hub")

_PREFERRED = (r"(^|[._])teacher\.", r"^state_dict\.")
"""Which of several backbones in a file is the teacher."""
_CONTAINERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "module")
_COUNTER = "num_batches_tracked"


def read_own_file(
    file: Path, architecture: str, source: str, image_size: ImageSize | None
) -> TeacherParts:
    """Read the weights of a timm model from a ``torch.save`` or safetensors file.

    Their keys may have a common prefix such as ``module.`` or ``backbone.``. Every weight of the
    architecture must be in the file, under timm's keys or those of the original release that timm
    converts. Tensors of other modules, such as a head, are not used, with a warning.

    Args:
        file: Path of the file.
        architecture: Name in timm; a tag selects the mean and std of these timm weights.
        source: The teacher's source, for error messages.
        image_size: Size of its images in pixels.

    Raises:
        TeacherError: If the file is damaged, or its weights are not exactly the architecture's.
    """
    check_architecture(architecture, source)
    loaded, content = load_tensor_file(file)
    expected = {key for key in build_skeleton(architecture).state_dict() if _COUNTER not in key}
    own, unused = _backbone(loaded, expected, file)
    check_tensors(unused | own, file, size=len(content))
    cfg: Any = timm.get_pretrained_cfg(architecture)
    if cfg is None:
        raise TeacherError(f"{source}: timm states no mean and std for {architecture}")
    size = {"img_size": image_size} if image_size and has_fixed_size(cfg.to_dict()) else {}
    try:
        model = _create(architecture, own, **size)
    except Exception as error:
        raise TeacherError(
            f"{source} does not fit {architecture}: {first_line(error)[:300]}; "
            "is it another architecture?"
        ) from error
    return TeacherParts(
        model=model,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        is_normalisation_stated="." in architecture,
        origin={"source_file": file.name, "source_sha256": hashlib.sha256(content).hexdigest()},
        warnings=_unused_warning(_without_classifier([*unused], cfg.classifier)),
    )


def _backbone(loaded: Any, expected: set[str], file: Path) -> tuple[State, State]:
    """Return the backbone's weights without their prefix, and the tensors beside it.

    Tensors that no module of the backbone has, as those of a head beside it, are other tensors.
    Where keys are missing, all stay with the backbone: timm may rename them.

    Raises:
        TeacherError: If there is no state dict, or the backbone is in the file several times.
    """
    try:
        found = split_at_prefix(loaded, expected, what=str(file), preferred=_PREFERRED)
    except StudentError as error:
        raise TeacherError(str(error)) from error
    own, others = found or (_state_dict(loaded, file), {})
    if not expected <= own.keys():
        return own, others
    modules = {key.partition(".")[0] for key in expected}
    heads = {key: value for key, value in own.items() if key.partition(".")[0] not in modules}
    return {key: own[key] for key in own if key not in heads}, others | heads


def _state_dict(loaded: Any, file: Path) -> State:
    """Return the state dict in a file whose keys are not timm's, as it is or in containers.

    Raises:
        TeacherError: If there is none.
    """
    found, path = loaded, []
    while isinstance(found, Mapping) and not _is_state(found):
        key = next((key for key in _CONTAINERS if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        found = found[key]
        path.append(key)
    if not (isinstance(found, Mapping) and _is_state(found)):
        keys = ", ".join(map(str, list(loaded)[:6])) if isinstance(loaded, Mapping) else "no dict"
        raise TeacherError(
            f"{file} has no state dict of tensors ({keys[:200]}); expected one, as it is or under "
            f"{', '.join(_CONTAINERS)}"
        )
    if path:
        log.info("%s: the weights are those under %s", file, ".".join(path))
    prefix = _common_prefix(found)
    return {key.removeprefix(prefix): value for key, value in found.items()}


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(
        isinstance(key, str) and isinstance(one, Tensor) for key, one in value.items()
    )


def _common_prefix(state: Collection[str]) -> str:
    """Return the prefix of DistributedDataParallel or torch.compile, if all keys have it."""
    prefixes = ("module.", "_orig_mod.", "model.")
    return next((one for one in prefixes if all(key.startswith(one) for key in state)), "")


def _unused_warning(unused: list[str]) -> tuple[str, ...]:
    if not unused:
        return ()
    modules = list(dict.fromkeys(key.partition(".")[0] for key in unused))
    named = ", ".join(modules[:4]) + (" ..." if len(modules) > 4 else "")
    return (f"{len(unused)} tensors of the teacher's file are not used: {named}",)


def _create(architecture: str, state: Mapping[str, Tensor], **arguments: Any) -> nn.Module:
    """Build a model without its classifier from a state dict in timm's keys, or convertible ones.

    Args:
        architecture: Name in timm.
        state: Its weights, and those of its classifier if it has one.
        **arguments: Further arguments for ``timm.create_model``.

    Raises:
        ValueError: If a weight is missing, or a key is unknown.
        Exception: Any other error of timm.
    """
    overlay = {"source": "", "state_dict": dict(state), "num_classes": -1}  # never strict
    with unmatched_keys() as unmatched:
        model = timm.create_model(
            architecture,
            pretrained=True,
            num_classes=0,
            pretrained_cfg_overlay=overlay,
            **arguments,
        )
    # Old torchvision files lack these counters, which are not used in eval mode.
    missing = [key for key in unmatched.missing if not key.endswith("num_batches_tracked")]
    cfg: Any = model.pretrained_cfg
    unknown = _without_classifier(unmatched.unexpected, cfg.get("classifier"))
    if missing or unknown:
        raise ValueError(
            f"{len(missing)} weights missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])})"
        )
    return forget_tensors(model)


def _without_classifier(keys: list[str], classifier: str | Sequence[str] | None) -> list[str]:
    """Return the keys that do not belong to ``classifier``, a field of timm's cfgs."""
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    return [key for key in keys if not key.startswith(tuple(f"{name}." for name in names))]
