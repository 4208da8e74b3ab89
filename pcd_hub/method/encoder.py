"""Encoder for contrastive pre-training: a backbone with a projection head on its pooled map."""

from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


class ProjectedEncoder(nn.Module):
    """Backbone, global average pooling and projection head ``fc``: images -> ``(B, D)``."""

    def __init__(self, pixels: nn.Module, in_channels: int, *, hidden_width: int, dim: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.fc = projector(in_channels, hidden_width=hidden_width, dim=dim)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        return self.fc(self.pixels(images).mean((2, 3)))


def projector(
    in_channels: int, *, hidden_width: int, dim: int, num_layers: int = 2
) -> nn.Sequential:
    """Build the projection head of MoCo v3 and SimCLR for ResNets: Linear-BN-ReLU-Linear-BN.

    The linear layers have no bias; the last BN has no affine parameters. MoCo v3's head for ViTs
    has three linear layers.

    Args:
        in_channels: Width of the input.
        hidden_width: Width of the hidden layers.
        dim: Width of the output.
        num_layers: Number of linear layers.
    """
    layers: list[nn.Module] = []
    width = in_channels
    for _ in range(num_layers - 1):
        norm = nn.BatchNorm1d(hidden_width)
        layers += [nn.Linear(width, hidden_width, bias=False), norm, nn.ReLU(inplace=True)]
        width = hidden_width
    last_norm = nn.BatchNorm1d(dim, affine=False)
    return nn.Sequential(*layers, nn.Linear(width, dim, bias=False), last_norm)


class _AllGather(torch.autograd.Function):
    """Concatenate the rows of all processes; the gradient is summed over all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "all d"], int]:
    """Return the rows of all processes in rank order, and the offset of this process's rows.

    Gradients flow back to every process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows, 0
    all_rows = cast("Tensor", _AllGather.apply(rows.contiguous()))
    return all_rows, dist.get_rank() * len(rows)
