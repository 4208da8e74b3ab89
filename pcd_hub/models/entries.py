"""The timm entries: the tag ``pcd`` on stock architectures, and our own ``resnet18_mhsa``.

Only timm's public names are used: a cfg is appended to the ``default_cfgs`` of the architecture's
own module, and its entrypoint is registered again. No architecture's default tag changes. Where
weights come from is decided when a model is BUILT (``PcdCfg.to_dict``), not at import, so that a
weight trained a moment ago counts.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model,
    model_entrypoint,
    register_model,
)
from timm.models.resnet import BasicBlock, ResNet

from pcd_hub.errors import StudentError
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
"""timm's architectures that get the tag."""

FindWeights = Callable[[str], Path | None]
"""Name of a weight, as ``resnet18.pcd``, -> its verified local file, or None."""


def _nowhere(name: str) -> None:
    del name


_find_local: FindWeights = _nowhere


@dataclass
class PcdCfg(PretrainedCfg):
    """timm's description of a weight, which asks the local store when a model is built."""

    # timm says Optional[str] of both, and names several layers for RepViT and FastViT.
    first_conv: str | tuple[str, ...] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    classifier: str | tuple[str, ...] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def to_dict(self, remove_source: bool = False, remove_null: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """As timm's, with ``file`` set if the store holds this weight.

        Not if the caller named a source of their own.
        """
        described = super().to_dict(remove_source=remove_source, remove_null=remove_null)
        if not remove_source and (path := self._local_file()):
            described["file"] = str(path)
        return described

    @property
    def has_weights(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whether there is anything to load."""
        return bool(super().has_weights or self._local_file())

    def _local_file(self) -> Path | None:
        if not self.architecture or self.file or self.url or self.state_dict or self.source:
            return None
        name = f"{self.architecture}.{self.tag}"
        try:
            registered = get_pretrained_cfg(name)
        except RuntimeError:  # a tag that nobody registered
            return None
        ours = registered is not None and registered.hf_hub_id == self.hf_hub_id
        return _find_local(name) if ours else None


def pcd_cfg(
    *,
    first_conv: Any,
    classifier: Any,
    pool_size: tuple[int, ...] | None,
    input_size: tuple[int, int, int] = (3, 224, 224),
    fixed_input_size: bool = False,
) -> PcdCfg:
    """The cfg of one entry: structural facts from timm, everything else ours."""
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
        license="apache-2.0",
        description="Pixel-wise contrastive distillation, without labels",
        paper_ids="arXiv:2211.00218",
        paper_name="Pixel-Wise Contrastive Distillation",
    )


def entry_cfg(architecture: str) -> PcdCfg:
    """The cfg, without a source, under which a ``pcd`` weight of a timm model is published."""
    base = get_pretrained_cfg(architecture)
    if base is None:
        raise StudentError(f"timm has no description of {architecture}; is it an old alias?")
    fixed = bool(base.fixed_input_size)
    return pcd_cfg(
        first_conv=base.first_conv,
        classifier=base.classifier,
        pool_size=base.pool_size,
        input_size=base.input_size if fixed else (3, 224, 224),
        fixed_input_size=fixed,
    )


def size_argument(architecture: str, image_size: int) -> dict[str, Any]:
    """What ``timm.create_model`` must be told of the image size: nothing, unless it is fixed."""
    return {"img_size": image_size} if entry_cfg(architecture).fixed_input_size else {}


class ResNetMhsa(ResNet):
    """A ResNet whose last stage ends in self-attention over its pixels.

    The block is the last child of the stage, so that whatever walks the stages (features_only,
    forward_intermediates, pruning) sees it for free.
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
    """ResNet-18 with eight-head self-attention as last child of ``layer4``; 12.2 M parameters."""
    return build_model_with_cfg(
        ResNetMhsa,  # pyright: ignore[reportArgumentType]
        "resnet18_mhsa",
        pretrained,
        block=BasicBlock,
        layers=(2, 2, 2, 2),
        **kwargs,
    )  # pyright: ignore[reportReturnType]


def register_entries(find_local: FindWeights) -> None:
    """Make the entries known to timm.

    ``find_local`` is asked whenever one is built with ``pretrained=True``. Safe to call any number
    of times.
    """
    global _find_local  # noqa: PLW0603 - timm copies cfgs deeply, so they cannot carry the store themselves
    _find_local = find_local
    _register_quietly(resnet18_mhsa, "resnet18_mhsa")
    for architecture in filter(is_model, STOCK_ARCHITECTURES):
        _add_tag(architecture)


def _add_tag(architecture: str) -> None:
    entrypoint = model_entrypoint(architecture)
    module_cfgs = getattr(sys.modules[entrypoint.__module__], "default_cfgs", {})
    known = module_cfgs[architecture]
    if type(known.cfgs.get(TAG)) is PretrainedCfg:
        return  # timm ships this tag itself by now: theirs
    known.cfgs[TAG] = entry_cfg(architecture)
    if TAG not in known.tags:
        known.tags.append(TAG)  # the first is the default: append
    _register_quietly(entrypoint, architecture)


def _register_quietly(entrypoint: Callable[..., Any], name: str) -> None:
    with warnings.catch_warnings():  # registered anew under its own name, on purpose
        warnings.filterwarnings(
            "ignore", message=f"Overwriting {name} in registry", category=UserWarning
        )
        register_model(entrypoint)
