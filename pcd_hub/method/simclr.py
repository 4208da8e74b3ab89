"""SimCLR (arXiv:2002.05709), which trains a teacher quickly: both views receive gradients."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.method.encoder import ProjectedEncoder, gather_rows


class SimCLR(nn.Module):
    """Encoder and loss, for DistributedDataParallel to wrap."""

    def __init__(self, encoder: ProjectedEncoder, *, temperature: float) -> None:
        super().__init__()
        self.base_encoder = encoder
        self.temperature = temperature

    def forward(
        self, first: Float[Tensor, "b 3 height width"], second: Float[Tensor, "b 3 height width"]
    ) -> Float[Tensor, ""]:
        """Return the loss of two views of the same images, which share batch statistics."""
        vectors = self.base_encoder(torch.cat((first, second)))
        return nt_xent(*vectors.chunk(2), temperature=self.temperature)


class ProjectedVectors(nn.Module):
    """Projection head on the vectors of a frozen backbone, and loss.

    Args:
        head: The projection head.
        temperature: Temperature of the loss.
    """

    def __init__(self, head: nn.Sequential, *, temperature: float) -> None:
        super().__init__()
        self.head = head
        self.temperature = temperature

    def forward(
        self, first: Float[Tensor, "b c"], second: Float[Tensor, "b c"]
    ) -> Float[Tensor, ""]:
        """Return the loss of two views of the same images, which share batch statistics."""
        vectors = self.head(torch.cat((first, second)))
        return nt_xent(*vectors.chunk(2), temperature=self.temperature)


def nt_xent(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], *, temperature: float
) -> Float[Tensor, ""]:
    """Compute SimCLR's normalised, temperature-scaled cross-entropy.

    The positive of each view is the other view of its image; the negatives are both views of all
    other images of all processes.
    """
    all_first, offset = gather_rows(F.normalize(first.float(), dim=1))
    all_second, _ = gather_rows(F.normalize(second.float(), dim=1))
    num_images, local = len(all_first), torch.arange(len(first), device=first.device) + offset
    rows = torch.cat((local, local + num_images))
    vectors = torch.cat((all_first, all_second))
    logits = vectors[rows] @ vectors.T / temperature
    self_mask = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, rows[:, None], value=True)
    other_view = (rows + num_images) % (2 * num_images)
    return F.cross_entropy(logits.masked_fill(self_mask, -torch.inf), other_view)
