"""MoCo v3 (arXiv:2104.02057), which trains a teacher with a projection head."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.method.encoder import ProjectedEncoder, gather_rows


class MoCoV3(nn.Module):
    """Online encoder, predictor and loss, for DistributedDataParallel to wrap.

    The momentum encoder, which has no gradients, stays outside.
    """

    def __init__(
        self, encoder: ProjectedEncoder, *, hidden_width: int, dim: int, temperature: float
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
        """Return the symmetric loss of each view's prediction and the other view's momentum key."""
        query_first = self.predictor(self.base_encoder(first))
        query_second = self.predictor(self.base_encoder(second))
        return info_nce(query_first, key_second, temperature=self.temperature) + info_nce(
            query_second, key_first, temperature=self.temperature
        )


def info_nce(
    query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], *, temperature: float
) -> Float[Tensor, ""]:
    """Compute ``2 T`` times the cross-entropy of each query against the keys of all processes."""
    keys, offset = gather_rows(F.normalize(key.float(), dim=1))
    logits = F.normalize(query.float(), dim=1) @ keys.T / temperature
    labels = torch.arange(offset, offset + len(query), device=query.device)
    return 2 * temperature * F.cross_entropy(logits, labels)


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """Copy ``encoder`` without gradients."""
    return copy.deepcopy(encoder).requires_grad_(False)  # noqa: FBT003


@torch.no_grad()
def momentum_update(momentum_encoder: nn.Module, encoder: nn.Module, *, momentum: float) -> None:
    """Update every momentum parameter: ``w' = momentum * w' + (1 - momentum) * w``."""
    for slow, fast in zip(momentum_encoder.parameters(), encoder.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)
