"""The teacher's scale: mean and variance of each channel over all pixels seen so far."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ChannelMoments(nn.Module):
    """Running mean and variance per channel; a frozen teacher's soon stand still.

    Batches are merged by count, mean and squared deviation (Chan, Golub, LeVeque 1979), which stays
    exact in float32 where sums of squares would cancel. Like ``KeyQueue``, a module only for its
    state: keep it beside the wrapped model.
    """

    merged: Float[Tensor, "3 c"]
    """Count, mean, and sum of squared deviations from the mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("merged", torch.zeros(3, channels))

    @staticmethod
    def of(pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "3 c"]:
        """Count, mean and sum of squared deviations of one batch."""
        values = pixels.transpose(0, 1).flatten(1).float()
        mean = values.mean(1)
        count = torch.full_like(mean, values.shape[1])
        return torch.stack((count, mean, (values - mean[:, None]).square().sum(1)))

    @torch.no_grad()
    def add(self, batches: Float[Tensor, "n 3 c"]) -> None:
        """Merge what :meth:`of` gave for ``n`` batches, as those of all processes, in order."""
        for count, mean, squares in batches:
            before, old_mean, old_squares = self.merged
            total, step = before + count, mean - old_mean
            new_mean = old_mean + step * count / total
            new_squares = old_squares + squares + step.square() * before * count / total
            self.merged.copy_(torch.stack((total, new_mean, new_squares)))

    def standardise(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """``pixels`` with mean 0 and variance 1 in each channel, by all that was added.

        A constant channel is only moved to 0.
        """
        count, mean, squares = self.merged
        variance = squares / count
        scale = torch.where(variance > 1e-12, variance, 1).rsqrt()
        return ((pixels.float() - mean[:, None, None]) * scale[:, None, None]).to(pixels.dtype)
