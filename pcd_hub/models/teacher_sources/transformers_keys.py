"""The keys of DINOv2 and DINOv3 models in transformers' format, and timm's.

Written from the files that transformers 4.57 and 5.24 save, which have the same keys as those on
the Hub.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pcd_hub.models.tensor_files import State

_VIT = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^(?:encoder\.)?layer\.", "blocks."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?", ".attn."),
    (r"^layernorm\.", "norm."),
)
_DINOV2 = (
    *_VIT,
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
)
_DINOV3 = (
    *_VIT,
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
_PLAIN_MLP = ((r"\.mlp\.up_proj\.", ".mlp.fc1."),)
_GATED_MLP = ((r"\.mlp\.gate_proj\.", ".mlp.fc1_g."), (r"\.mlp\.up_proj\.", ".mlp.fc1_x."))
_CONVNEXT = (
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"\.downsample_layers\.", ".downsample."),
    (r"\.layers\.", ".blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
    (r"(blocks\.\d+)\.layer_norm\.", r"\1.norm."),
    (r"^layer_norm\.", "head.norm."),
)
_QKV = re.compile(r"^(.*\.attn)\.(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$")


def dinov2_state(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> State:
    """Return the weights of a ``dinov2`` or ``dinov2_with_registers`` model with timm's keys."""
    del config
    found = _with_qkv(_renamed(state, _DINOV2))
    if "reg_token" in found:  # timm's has no position embedding for the class token
        positions = found["pos_embed"]
        found["cls_token"] = found["cls_token"] + positions[:, :1]
        found["pos_embed"] = positions[:, 1:]
    return found


def dinov3_vit_state(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> State:
    """Return the weights of a ``dinov3_vit`` model with timm's keys.

    Biases of queries and values that are all 0, as in most releases, are left out, as in timm.
    """
    mlp = _GATED_MLP if config.get("use_gated_mlp") else _PLAIN_MLP
    found = _with_qkv(_renamed(state, (*_DINOV3, *mlp)))
    biases = {key: value for key, value in found.items() if key.endswith(".attn.qkv.bias")}
    has_biases = any(value.any() for value in biases.values())
    for key, value in biases.items():
        del found[key]
        if has_biases:
            query, _, found[key.replace("qkv.bias", "v_bias")] = value.chunk(3)
            found[key.replace("qkv.bias", "q_bias")] = query
    return found


def dinov3_convnext_state(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> State:
    """Return the weights of a ``dinov3_convnext`` model with timm's keys."""
    del config
    return _renamed(state, _CONVNEXT)


Conversion = Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], State]


def _renamed(state: Mapping[str, torch.Tensor], rules: tuple[tuple[str, str], ...]) -> State:
    found: State = {}
    for key, value in state.items():
        if key == "embeddings.mask_token":  # used by pre-training only
            continue
        new = key
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        found[new] = value
    return found


def _with_qkv(state: State) -> State:
    """Concatenate queries, keys and values; a missing bias is 0."""
    found: State = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        if match := _QKV.match(key):
            attention, name, kind = match.groups()
            parts.setdefault(f"{attention}.qkv.{kind}", {})[name[0]] = value
        else:
            found[key] = value
    for key, by_name in parts.items():
        first = next(iter(by_name.values()))
        found[key] = torch.cat([by_name.get(name, torch.zeros_like(first)) for name in "qkv"])
    return found
