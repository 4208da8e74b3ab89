"""Folders in transformers' format, as DINOv2 and DINOv3 have them on the Hub.

The weights are loaded into timm's model of the same architecture. Everything else is refused.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pcd_hub.errors import TeacherError, first_line
from pcd_hub.files.read import read_bounded
from pcd_hub.files.strict_json import parse_json, printable
from pcd_hub.image_size import ImageSize
from pcd_hub.models.teacher_sources.parts import TeacherParts, build_model, check_normalisation
from pcd_hub.models.teacher_sources.transformers_keys import (
    Conversion,
    dinov2_state,
    dinov3_convnext_state,
    dinov3_vit_state,
)
from pcd_hub.models.tensor_files import State, load_tensors

_MAX_BYTES = 1_000_000
_WEIGHTS = "model.safetensors"
_LICENSE = re.compile(r"license: *([\w.-]+) *")


class _Family(NamedTuple):
    """A model type of transformers."""

    convert: Conversion
    size_fields: tuple[str, ...]
    """Fields of config.json that select the architecture."""
    architectures: dict[tuple[Any, ...], str]
    """timm's architecture by the values of ``size_fields``."""
    expected: dict[str, Any]
    """Other fields that change the features, with the only value that timm's model has."""


_VIT_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads")
_DINOV2_SIZES = {
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1536, 40, 24): "giant",
}
_DINOV2 = {"patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_channels": 3}
_DINOV3 = {
    "patch_size": 16,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "num_register_tokens": 4,
    "num_channels": 3,
}
FAMILIES: dict[str, _Family] = {
    "dinov2": _Family(
        dinov2_state,
        _VIT_FIELDS,
        {size: f"vit_{name}_patch14_dinov2" for size, name in _DINOV2_SIZES.items()},
        _DINOV2,
    ),
    "dinov2_with_registers": _Family(
        dinov2_state,
        _VIT_FIELDS,
        {size: f"vit_{name}_patch14_reg4_dinov2" for size, name in _DINOV2_SIZES.items()},
        _DINOV2 | {"num_register_tokens": 4},
    ),
    "dinov3_vit": _Family(
        dinov3_vit_state,
        (*_VIT_FIELDS, "use_gated_mlp", "hidden_act"),
        {
            (384, 12, 6, False, "gelu"): "vit_small_patch16_dinov3",
            (384, 12, 6, True, "silu"): "vit_small_plus_patch16_dinov3",
            (768, 12, 12, False, "gelu"): "vit_base_patch16_dinov3",
            (1024, 24, 16, False, "gelu"): "vit_large_patch16_dinov3",
            (1280, 32, 20, True, "silu"): "vit_huge_plus_patch16_dinov3",
            (4096, 40, 32, True, "silu"): "vit_7b_patch16_dinov3",
        },
        _DINOV3,
    ),
    "dinov3_convnext": _Family(
        dinov3_convnext_state,
        ("depths", "hidden_sizes"),
        {
            ((3, 3, 9, 3), (96, 192, 384, 768)): "convnext_tiny",
            ((3, 3, 27, 3), (96, 192, 384, 768)): "convnext_small",
            ((3, 3, 27, 3), (128, 256, 512, 1024)): "convnext_base",
            ((3, 3, 27, 3), (192, 384, 768, 1536)): "convnext_large",
        },
        {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_channels": 3},
    ),
}
"""Model types that are read."""


def is_transformers_folder(folder: Path) -> bool:
    """Return whether ``config.json`` is that of a transformers model, not of timm's."""
    try:
        config = _read_json(folder / "config.json")
    except TeacherError:
        return False
    return "model_type" in config and "architecture" not in config


def transformers_architecture(folder: Path) -> str:
    """Return timm's architecture for a folder in transformers' format.

    Raises:
        TeacherError: If there is none.
    """
    return _architecture(_read_json(folder / "config.json"), f"local-dir:{folder}")[0]


def read_transformers_folder(
    folder: Path, source: str, image_size: ImageSize | None
) -> TeacherParts:
    """Read a DINOv2 or DINOv3 model from a folder in transformers' format.

    Args:
        folder: Folder with config.json, model.safetensors and preprocessor_config.json.
        source: The teacher's source, for error messages.
        image_size: Size of its images in pixels.

    Raises:
        TeacherError: If the model is another, a file is missing or damaged, or a weight is missing
            or unknown.
    """
    config = _read_json(folder / "config.json")
    architecture, family = _architecture(config, source)
    if not (folder / _WEIGHTS).is_file():
        raise TeacherError(
            f"{folder} has no {_WEIGHTS}; expected one file of weights: download it again, or save "
            "it with save_pretrained(max_shard_size='100GB')"
        )
    state = _as_float(load_tensors(folder / _WEIGHTS))
    try:
        state = family.convert(state, config)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise TeacherError(
            f"{source} does not fit {architecture}: {first_line(error)[:200]}; download it again"
        ) from error
    if any(key.endswith(".q_bias") for key in state):
        architecture += "_qkvb"
    stated = _normalisation(folder / "preprocessor_config.json", source)
    mean, std = stated or (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return TeacherParts(
        model=build_model(
            architecture, state, source, image_size, **model_arguments(architecture, state)
        ),
        license=_license(folder / "README.md"),
        mean=mean,
        std=std,
        is_normalisation_stated=stated is not None,
        origin={"layout": f"transformers {config['model_type']}", "source_file": _WEIGHTS},
    )


def model_arguments(architecture: str, state: State) -> dict[str, Any]:
    """Return arguments for timm's constructor that the weights determine."""
    if "pos_embed" not in state:
        return {}
    class_token = 0 if "reg_token" in state else 1
    side = round((state["pos_embed"].shape[1] - class_token) ** 0.5)
    return {"img_size": side * state["patch_embed.proj.weight"].shape[-1]}


def _architecture(config: Mapping[str, Any], source: str) -> tuple[str, _Family]:
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise TeacherError(
            f"{source} is a transformers model of type {printable(str(kind))[:60]}, expected "
            f"one of {', '.join(FAMILIES)}; in Python any model is a teacher "
            "(pcd_hub.distill(teacher=model, mean=..., std=...))"
        )
    for field, expected in family.expected.items():
        if (found := config.get(field, expected)) != expected:
            raise TeacherError(
                f"{source}: config.json: {field} is {printable(str(found))[:60]}, expected "
                f"{expected}, as in timm's models of this type"
            )
    values = [config.get(field, False) for field in family.size_fields]
    size = tuple(tuple(value) if isinstance(value, list) else value for value in values)
    for known, architecture in family.architectures.items():
        if known == size:  # which may not be hashable
            return architecture, family
    raise TeacherError(
        f"{source}: config.json: {', '.join(family.size_fields)} are {printable(str(size))[:120]}, "
        f"expected those of {', '.join(family.architectures.values())}"
    )


def _as_float(state: State) -> State:
    return {key: value.float() for key, value in state.items()}


def _normalisation(file: Path, source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of ``preprocessor_config.json``; None if it does not state them."""
    if not file.is_file():
        return None
    config = _read_json(file)
    mean, std = config.get("image_mean"), config.get("image_std")
    if mean is None or std is None:
        return None
    try:
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError) as error:
        raise TeacherError(f"{file}: image_mean and image_std are not three numbers") from error
    check_normalisation(mean, std, source)
    return mean, std


def _license(readme: Path) -> str:
    """Return the licence in the README's metadata, as the Hub shows it."""
    try:
        first, *lines = read_bounded(readme, _MAX_BYTES).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return "not stated"
    if first.strip() == "---":
        for line in itertools.takewhile(lambda line: line.strip() != "---", lines):
            if match := _LICENSE.fullmatch(line):
                return match[1]
    return "not stated"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_bounded(file, _MAX_BYTES), what=str(file), max_bytes=_MAX_BYTES)
    except (OSError, ValueError) as error:
        raise TeacherError(f"{first_line(error)[:200]}; download it again") from error
    if not isinstance(value, dict):
        raise TeacherError(f"{file} is damaged: expected an object; download it again")
    return value
