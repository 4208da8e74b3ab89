"""MoCo v3 (arXiv:2104.02057): how a teacher with a trained projection head is made."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.method.encoder import ProjectedEncoder, gathered


class MoCoV3(nn.Module):
    """The online branch and its loss; what DistributedDataParallel wraps.

    The momentum encoder stays beside it.
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
    keys, offset = gathered(F.normalize(key.float(), dim=1))
    logits = F.normalize(query.float(), dim=1) @ keys.T / temperature
    own = torch.arange(offset, offset + len(query), device=query.device)
    return 2 * temperature * F.cross_entropy(logits, own)


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """A copy of ``encoder`` that receives no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)  # noqa: FBT003


@torch.no_grad()
def momentum_update(momentum_encoder: nn.Module, encoder: nn.Module, *, momentum: float) -> None:
    """``w' = momentum * w' + (1 - momentum) * w`` for every parameter."""
    for slow, fast in zip(momentum_encoder.parameters(), encoder.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)
