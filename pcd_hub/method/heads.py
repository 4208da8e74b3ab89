"""Projection heads: the teacher's, applied to feature maps (SpatialAdaptor), and the student's."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.errors import TeacherError

Adaptor = Literal["spatial", "plain"]
"""ReLU of a pixel head: :class:`SpatialReLU`, or ``nn.ReLU`` at each location, for comparison."""


class SpatialReLU(nn.Module):
    """The ReLU that commutes with mean pooling: ``x * 1[sum_hw x > 0]`` per sample and channel.

    As in PCD's SpatialAdaptor, the sign of a channel's sum passes or blocks the whole channel. The
    sum is computed in at least float32 and carries no gradient. On ``1 x 1`` maps it is the
    ordinary ReLU.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        total = x.detach().to(torch.promote_types(x.dtype, torch.float32)).sum((2, 3), keepdim=True)
        return x * (total > 0).to(x.dtype)


def to_pixel_head(vector_head: nn.Sequential, *, adaptor: Adaptor = "spatial") -> nn.Sequential:
    """Convert a trained head on vectors to the same head on feature maps.

    ``(B, C) -> (B, D)`` becomes ``(B, C, h, w) -> (B, D, h, w)``: Linear becomes a 1x1 convolution,
    BatchNorm1d a BatchNorm2d with the same statistics, ReLU a :class:`SpatialReLU`. In eval mode
    the head commutes with spatial mean pooling, ``mean_hw(pixel_head(x)) ==
    vector_head(mean_hw(x))`` (SpatialAdaptor, arXiv:2211.00218).

    Args:
        vector_head: An ``nn.Sequential`` (nesting allowed) of ``Linear``, ``BatchNorm1d`` with
            running statistics, ``ReLU`` and ``Identity``. It is copied, not changed.
        adaptor: ``"plain"`` keeps the ReLU of each location; the head then does not commute with
            the mean.

    Returns:
        The pixel head in eval mode.

    Raises:
        TeacherError: If the head has a layer of another type. GELU, LayerNorm and L2
            normalisation, for example, do not commute with the mean.
    """
    relu = SpatialReLU if adaptor == "spatial" else nn.ReLU
    return nn.Sequential(*_convert(vector_head, "head", relu)).eval()


def commutes_with_mean(pixel_head: nn.Module) -> bool:
    """Return whether a result of :func:`to_pixel_head` commutes with spatial mean pooling."""
    return not any(isinstance(layer, nn.ReLU) for layer in pixel_head.modules())


def spatial_mean_error(
    vector_head: Callable[[Tensor], Tensor],
    pixel_head: Callable[[Tensor], Tensor],
    maps: Float[Tensor, "b c h w"],
) -> float:
    """Measure how far ``mean_hw(pixel_head(maps))`` is from ``vector_head(mean_hw(maps))``.

    The two are equal for a correct conversion (see :func:`to_pixel_head`).

    Returns:
        The largest absolute difference, relative to the largest output of the vector head.
    """
    with torch.no_grad():
        expected = vector_head(maps.mean((2, 3)))
        actual = pixel_head(maps).mean((2, 3))
    return float(
        (actual - expected).abs().max()
        / expected.abs().max().clamp_min(torch.finfo(maps.dtype).tiny)
    )


def _convert(head: nn.Sequential, path: str, relu: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for name, layer in head.named_children():
        here = f"{path}.{name}"
        if type(layer) is nn.Sequential:
            layers += _convert(layer, here, relu)
        else:
            layers.append(_convert_layer(layer, here, relu))
    return layers


def _convert_layer(layer: nn.Module, path: str, relu: type[nn.Module]) -> nn.Module:
    # Exact types: a subclass (a cosine or weight-normalised Linear) may compute something else.
    kind = type(layer)
    if kind is nn.Linear:
        return _as_conv(layer)
    if kind is nn.BatchNorm1d and layer.running_mean is not None:
        return _as_batch_norm_2d(layer)
    if kind is nn.ReLU:
        return relu()
    if kind is nn.Identity:
        return nn.Identity()
    found = "BatchNorm1d without running statistics" if kind is nn.BatchNorm1d else kind.__name__
    raise TeacherError(
        f"{path} is {found}, which does not commute with mean pooling, so the head cannot be "
        "applied to feature maps: expected Linear, BatchNorm1d and ReLU. Use the teacher without "
        "its head instead"
    )


def _as_conv(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Linear)
    weight = layer.weight
    conv = nn.Conv2d(
        layer.in_features,
        layer.out_features,
        1,
        bias=layer.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(weight[:, :, None, None])
        if conv.bias is not None:
            conv.bias.copy_(layer.bias)
    return conv


def _as_batch_norm_2d(layer: nn.Module) -> nn.BatchNorm2d:
    assert isinstance(layer, nn.BatchNorm1d)
    running_mean = layer.running_mean
    assert running_mean is not None
    norm = nn.BatchNorm2d(
        layer.num_features,
        eps=layer.eps,
        affine=layer.affine,
        device=running_mean.device,
        dtype=running_mean.dtype,
    )
    norm.load_state_dict(copy.deepcopy(layer.state_dict()))
    return norm


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """Widths and biases of the MLPs (projector and predictor) that a student head stacks."""

    mlps: tuple[tuple[int, ...], ...]
    """Layer widths of each MLP, without its input width."""
    hidden_bias: bool
    output_bias: bool


STUDENT_HEADS = {
    "mocov3": HeadLayout(mlps=((4096, 256), (4096, 256)), hidden_bias=False, output_bias=False),
    "byol": HeadLayout(mlps=((4096, 256), (4096, 256)), hidden_bias=True, output_bias=False),
    "swav": HeadLayout(mlps=((2048, 128), (2048, 128)), hidden_bias=True, output_bias=True),
    "barlow_twins": HeadLayout(
        mlps=((8192, 8192, 8192), (8192, 8192, 8192)), hidden_bias=False, output_bias=False
    ),
    "linear": HeadLayout(mlps=((256,),), hidden_bias=True, output_bias=True),
}
"""Layouts of the released PCD code by teacher family, and a linear layer for regression losses."""


def student_head(in_channels: int, layout: HeadLayout) -> nn.Sequential:
    """Build a student head of 1x1 convolutions ``(B, in_channels, h, w) -> (B, D, h, w)``.

    Each MLP is Conv-BN-ReLU for every hidden width and a final Conv.
    """
    layers: list[nn.Module] = []
    width = in_channels
    for *hidden, out in layout.mlps:
        for next_width in hidden:
            conv = nn.Conv2d(width, next_width, 1, bias=layout.hidden_bias)
            layers += [conv, nn.BatchNorm2d(next_width), nn.ReLU(inplace=True)]
            width = next_width
        layers.append(nn.Conv2d(width, out, 1, bias=layout.output_bias))
        width = out
    return _UnrolledSequential(*layers)


class _UnrolledSequential(nn.Sequential):
    """``nn.Sequential`` that PyTorch 2.6 compiles, which it does not do for the plain class."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self:
            x = layer(x)
        return x
