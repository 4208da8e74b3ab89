"""Training with class labels, for comparison with training without labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """Backbone, global average pooling and a linear layer ``fc``: images -> ``(B, classes)``."""

    def __init__(self, pixels: nn.Module, in_channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b classes"]:
        return self.fc(self.pixels(images).mean((2, 3)))


class Supervised(nn.Module):
    """Classifier and loss, for DistributedDataParallel to wrap."""

    def __init__(self, classifier: PooledClassifier) -> None:
        super().__init__()
        self.base_encoder = classifier

    def forward(
        self,
        first: Float[Tensor, "b 3 height width"],
        second: Float[Tensor, "b 3 height width"],
        classes: Int64[Tensor, " b"],
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of two views of the same images."""
        logits = self.base_encoder(torch.cat((first, second)))
        return F.cross_entropy(logits.float(), classes.repeat(2))
