"""What contrastive pre-training trains: a backbone with a projection head on its pooled map."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from jaxtyping import Float
from torch import Tensor, nn


class ProjectedEncoder(nn.Module):
    """Backbone, mean over positions, projection head ``fc``: images -> ``(B, D)``."""

    def __init__(self, pixels: nn.Module, in_channels: int, *, hidden_width: int, dim: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.fc = projector(in_channels, hidden_width=hidden_width, dim=dim)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        return self.fc(self.pixels(images).mean((2, 3)))


def projector(in_channels: int, *, hidden_width: int, dim: int) -> nn.Sequential:
    """Linear-BN-ReLU-Linear-BN, as MoCo v3 and SimCLR have it for ResNets.

    Without biases and with an affine-free last BN.
    """
    return nn.Sequential(
        nn.Linear(in_channels, hidden_width, bias=False),
        nn.BatchNorm1d(hidden_width),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_width, dim, bias=False),
        nn.BatchNorm1d(dim, affine=False),
    )


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes in rank order, and where ours begin; gradients flow back to all."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows, 0
    parts = dist_functional.all_gather(rows.contiguous())
    return torch.cat(tuple(parts)), dist.get_rank() * len(rows)
