"""SimCLR (arXiv:2002.05709): a teacher in little time, as both views learn at once."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.method.encoder import ProjectedEncoder, gathered


class SimCLR(nn.Module):
    """The encoder and its loss; what DistributedDataParallel wraps."""

    def __init__(self, encoder: ProjectedEncoder, *, temperature: float) -> None:
        super().__init__()
        self.base_encoder = encoder
        self.temperature = temperature

    def forward(
        self, first: Float[Tensor, "b 3 height width"], second: Float[Tensor, "b 3 height width"]
    ) -> Float[Tensor, ""]:
        """The loss of two views of the same images; BatchNorm sees both together."""
        vectors = self.base_encoder(torch.cat((first, second)))
        return nt_xent(*vectors.chunk(2), temperature=self.temperature)


def nt_xent(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], *, temperature: float
) -> Float[Tensor, ""]:
    """The normalised, temperature-scaled cross-entropy of SimCLR.

    Each view must find the other view of its image among both views of all images of all processes,
    itself left out.
    """
    all_first, offset = gathered(F.normalize(first.float(), dim=1))
    all_second, _ = gathered(F.normalize(second.float(), dim=1))
    images, ours = len(all_first), torch.arange(len(first), device=first.device) + offset
    rows = torch.cat((ours, ours + images))
    everything = torch.cat((all_first, all_second))
    logits = everything[rows] @ everything.T / temperature
    itself = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, rows[:, None], value=True)
    other_view = (rows + images) % (2 * images)
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), other_view)
