"""Entries in timm: the tag ``pcd`` for stock architectures, and the model ``resnet18_mhsa``.

A cfg is appended to the ``default_cfgs`` of the architecture's module, and its entrypoint is
registered again; only timm's listing requires a private attribute. The default tag of each
architecture is unchanged. Weights are looked up when a model is built with ``pretrained=True``,
not at import, so newly trained weights are found, and timm receives verified tensors. timm's
listing (``list_pretrained``, ``is_model_pretrained``) looks them up when it is called.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model,
    list_models,
    model_entrypoint,
    register_model,
)
from timm.models import _registry as timm_registry
from timm.models.resnet import BasicBlock, ResNet

from pcd_hub.errors import StudentError, nearest
from pcd_hub.image_size import ImageSize
from pcd_hub.method.attention import SelfAttention2d

TAG = "pcd"

STOCK_ARCHITECTURES = (
    "resnet18",
    "resnet18d",
    "resnet34",
    "resnet50",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "regnety_008",
    "convnext_atto",
    "convnext_nano",
    "convnext_tiny",
    "ghostnet_100",
    "repvit_m1",
    "fastvit_t8",
    "edgenext_small",
    "vit_tiny_patch16_224",
)
"""timm architectures that get the tag ``pcd``."""

ReadByName = Callable[[str], Mapping[str, torch.Tensor]]
"""Maps the name of a weight, such as ``resnet18.pcd``, to its verified tensors."""

HasWeight = Callable[[str], bool]
"""Maps the name of a weight to whether it exists."""

Model = TypeVar("Model", bound=torch.nn.Module)

_SOURCES = ("file", "url", "state_dict", "source", "hf_hub_id")


@dataclass
class PcdCfg(PretrainedCfg):
    """timm's PretrainedCfg, for architectures with several first or last layers."""

    # timm annotates both as Optional[str], but uses tuples for RepViT and FastViT.
    first_conv: str | tuple[str, ...] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    classifier: str | tuple[str, ...] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


def pcd_cfg(
    *,
    first_conv: Any,
    classifier: Any,
    pool_size: tuple[int, ...] | None,
    input_size: tuple[int, int, int] = (3, 224, 224),
    fixed_input_size: bool = False,
) -> PcdCfg:
    """Return the cfg of an entry, given the fields that depend on the architecture."""
    return PcdCfg(
        input_size=input_size,
        fixed_input_size=fixed_input_size,
        num_classes=0,
        pool_size=pool_size,
        first_conv=first_conv,
        classifier=classifier,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        crop_pct=0.875,
        interpolation="bicubic",
        description="Pixel-wise contrastive distillation, without labels",
        paper_ids="arXiv:2211.00218",
        paper_name="Pixel-Wise Contrastive Distillation",
    )


def check_architecture(architecture: str) -> None:
    """Check that timm has the architecture.

    Raises:
        StudentError: If it does not; the message suggests the closest name.
    """
    if not is_model(architecture):
        raise StudentError(
            f"timm has no architecture '{architecture}'{nearest(architecture, list_models())}"
        )


def entry_cfg(architecture: str) -> PcdCfg:
    """Return the cfg of an architecture's ``pcd`` weight, without a source of weights."""
    base = get_pretrained_cfg(architecture)
    if base is None:
        raise StudentError(f"timm has no pretrained_cfg for {architecture}; is it an old alias?")
    fixed = bool(base.fixed_input_size)
    return pcd_cfg(
        first_conv=base.first_conv,
        classifier=base.classifier,
        pool_size=base.pool_size,
        input_size=base.input_size if fixed else (3, 224, 224),
        fixed_input_size=fixed,
    )


def size_argument(architecture: str, image_size: ImageSize) -> dict[str, Any]:
    """Return ``img_size`` for ``timm.create_model`` if the input size is fixed, else {}."""
    return {"img_size": image_size} if entry_cfg(architecture).fixed_input_size else {}


def build_arguments(
    architecture: str, image_size: ImageSize, *, in_chans: int = 3
) -> dict[str, Any]:
    """Return the arguments that build the same model as ``pretrained=True``, without weights."""
    # timm 1.0.31, efficientnet.py: fbnetc_100 has a different epsilon if pretrained.
    extra: dict[str, Any] = {"bn_eps": 1e-3} if architecture == "fbnetc_100" else {}
    if in_chans != 3:
        extra |= {"in_chans": in_chans}
    return {**size_argument(architecture, image_size), **extra}


def build_skeleton(architecture: str, **arguments: Any) -> torch.nn.Module:
    """Build a model without a head, on the meta device if possible, to inspect its shapes."""
    build = functools.partial(timm.create_model, architecture, num_classes=0, **arguments)
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):  # the constructor needs the tensors' values
        return build()


class ResNetMhsa(ResNet):
    """A ResNet whose last stage ends in self-attention over all positions.

    The block is the last child of the stage, so that features_only, forward_intermediates and
    pruning include it.
    """

    def __init__(
        self,
        *args: Any,
        num_heads: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, device=device, dtype=dtype, **kwargs)  # pyright: ignore[reportArgumentType]
        last_stage = self.get_submodule(cast("str", self.feature_info[-1]["module"]))
        assert isinstance(last_stage, torch.nn.Sequential)
        dim = cast("int", self.num_features)
        last_stage.append(SelfAttention2d(dim, num_heads=num_heads, device=device, dtype=dtype))


default_cfgs = generate_default_cfgs(
    {"resnet18_mhsa.pcd": pcd_cfg(first_conv="conv1", classifier="fc", pool_size=(7, 7))}  # pyright: ignore[reportArgumentType]
)


def resnet18_mhsa(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:  # noqa: FBT001, FBT002 - timm's signature
    """ResNet-18 with eight-head self-attention at the end of ``layer4``; 12.2 M parameters."""
    return build_model_with_cfg(
        ResNetMhsa,  # pyright: ignore[reportArgumentType]
        "resnet18_mhsa",
        pretrained,
        block=BasicBlock,
        layers=(2, 2, 2, 2),
        **kwargs,
    )  # pyright: ignore[reportReturnType]


class PretrainedNames(set[str]):
    """timm's set of models with weights, with membership of ``pcd`` entries computed on demand."""

    def __init__(self, timms: Iterable[str], has_weight: HasWeight) -> None:
        super().__init__(timms)
        self.has_weight = has_weight

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        weight = _weight_of(name) if isinstance(name, str) else None
        return weight is not None and self.has_weight(weight)

    def intersection(self, *others: Iterable[Any]) -> set[str]:
        """Return the names in all of ``others`` that have weights."""
        return {name for name in set.intersection(*map(set, others)) if name in self}


def register_entries(read_by_name: ReadByName, has_weight: HasWeight) -> None:
    """Register the entries with timm; repeated calls are safe.

    Args:
        read_by_name: Called when an entry is built with ``pretrained=True``.
        has_weight: Called when timm lists pretrained models.
    """
    _register_quietly(_with_weights(resnet18_mhsa, "resnet18_mhsa", read_by_name))
    for architecture in filter(is_model, STOCK_ARCHITECTURES):
        _add_tag(architecture, read_by_name)
    # timm records at registration which models have weights, in a private attribute.
    if isinstance(known := getattr(timm_registry, "_model_has_pretrained", None), set):
        timm_registry._model_has_pretrained = PretrainedNames(known, has_weight)


def _weight_of(name: str) -> str | None:
    """Return the ``pcd`` weight that a timm model name refers to, if any."""
    architecture, _, tag = name.partition(".")
    if tag == TAG or (architecture == "resnet18_mhsa" and not tag):  # the default tag
        return f"{architecture}.{TAG}"
    return None


def forget_tensors(model: Model) -> Model:
    """Remove the state dict that timm keeps in a built model's ``pretrained_cfg``."""
    for module in model.modules():
        if isinstance(cfg := getattr(module, "pretrained_cfg", None), dict):
            cfg.pop("state_dict", None)
    return model


def _add_tag(architecture: str, read_by_name: ReadByName) -> None:
    entrypoint = inspect.unwrap(model_entrypoint(architecture))
    module_cfgs = getattr(sys.modules[entrypoint.__module__], "default_cfgs", {})
    known = module_cfgs[architecture]
    if type(known.cfgs.get(TAG)) is PretrainedCfg:
        return  # timm already has a tag of this name
    known.cfgs[TAG] = entry_cfg(architecture)
    if TAG not in known.tags:
        known.tags.append(TAG)  # appended, because the first tag is the default
    _register_quietly(_with_weights(entrypoint, architecture, read_by_name))


def _with_weights(
    entrypoint: Callable[..., torch.nn.Module], architecture: str, read_by_name: ReadByName
) -> Callable[..., torch.nn.Module]:
    """Wrap an entrypoint so that the tag ``pcd`` loads the tensors from ``read_by_name``."""

    @functools.wraps(entrypoint)
    def build(pretrained: bool = False, **arguments: Any) -> torch.nn.Module:  # noqa: FBT001, FBT002 - timm's signature
        if not (pretrained and _is_ours(architecture, arguments)):
            return entrypoint(pretrained=pretrained, **arguments)
        overlay = arguments.pop("pretrained_cfg_overlay", None) or {}
        tensors = read_by_name(f"{architecture}.{TAG}")
        ours = {**overlay, "state_dict": tensors}
        return forget_tensors(entrypoint(pretrained=True, pretrained_cfg_overlay=ours, **arguments))

    return build


def _is_ours(architecture: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether the tag is ``pcd`` and the caller passes no other source of weights."""
    cfg = arguments.get("pretrained_cfg") or get_pretrained_cfg(architecture)
    facts = {"tag": cfg} if isinstance(cfg, str) else cfg if isinstance(cfg, dict) else vars(cfg)
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    named = any({**facts, **overlay}.get(source) for source in _SOURCES)
    return facts.get("tag") == TAG and not named


def _register_quietly(entrypoint: Callable[..., Any]) -> None:
    name = entrypoint.__name__
    with warnings.catch_warnings():  # overwritten on purpose
        warnings.filterwarnings(
            "ignore", message=f"Overwriting {name} in registry", category=UserWarning
        )
        register_model(entrypoint)
