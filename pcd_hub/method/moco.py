"""MoCo v3 (arXiv:2104.02057): how a teacher with a trained projection head is made."""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class MoCoEncoder(nn.Module):
    """Backbone, mean over positions, projection head ``fc``: images -> ``(B, D)``."""

    def __init__(self, pixels: nn.Module, in_channels: int, *, hidden_width: int, dim: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.fc = moco_projector(in_channels, hidden_width=hidden_width, dim=dim)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        return self.fc(self.pixels(images).mean((2, 3)))


def moco_projector(in_channels: int, *, hidden_width: int, dim: int) -> nn.Sequential:
    """Linear-BN-ReLU-Linear-BN, as MoCo v3 has it for ResNets.

    Without biases and with an affine-free last BN.
    """
    return nn.Sequential(
        nn.Linear(in_channels, hidden_width, bias=False),
        nn.BatchNorm1d(hidden_width),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_width, dim, bias=False),
        nn.BatchNorm1d(dim, affine=False),
    )


class MoCoV3(nn.Module):
    """The online branch and its loss; what DistributedDataParallel wraps.

    The momentum encoder stays beside it.
    """

    def __init__(
        self, encoder: MoCoEncoder, *, hidden_width: int, dim: int, temperature: float
    ) -> None:
        super().__init__()
        self.base_encoder = encoder
        self.predictor = nn.Sequential(
            nn.Linear(dim, hidden_width, bias=False),
            nn.BatchNorm1d(hidden_width),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_width, dim, bias=False),
        )
        self.temperature = temperature

    def forward(
        self,
        first: Float[Tensor, "b 3 height width"],
        second: Float[Tensor, "b 3 height width"],
        key_first: Float[Tensor, "b d"],
        key_second: Float[Tensor, "b d"],
    ) -> Float[Tensor, ""]:
        """The symmetric loss: each view's prediction against the momentum key of the other view."""
        query_first = self.predictor(self.base_encoder(first))
        query_second = self.predictor(self.base_encoder(second))
        return info_nce(query_first, key_second, temperature=self.temperature) + info_nce(
            query_second, key_first, temperature=self.temperature
        )


def info_nce(
    query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], *, temperature: float
) -> Float[Tensor, ""]:
    """``2 T`` times the cross-entropy of each query against all images' keys, of all processes."""
    keys, offset = _gathered(F.normalize(key.float(), dim=1))
    logits = F.normalize(query.float(), dim=1) @ keys.T / temperature
    own = torch.arange(offset, offset + len(query), device=query.device)
    return 2 * temperature * F.cross_entropy(logits, own)


def _gathered(keys: Tensor) -> tuple[Tensor, int]:
    """The keys of all processes in rank order, and where ours begin."""
    if not (dist.is_available() and dist.is_initialized()):
        return keys, 0
    parts = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, keys.contiguous())
    return torch.cat(parts), dist.get_rank() * len(keys)


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """A copy of ``encoder`` that receives no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)  # noqa: FBT003


@torch.no_grad()
def momentum_update(momentum_encoder: nn.Module, encoder: nn.Module, *, momentum: float) -> None:
    """``w' = momentum * w' + (1 - momentum) * w`` for every parameter."""
    for slow, fast in zip(momentum_encoder.parameters(), encoder.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)
