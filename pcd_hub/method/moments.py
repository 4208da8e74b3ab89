"""Running mean and variance of the teacher's channels, to centre or standardise its maps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ChannelMoments(nn.Module):
    """Mean and variance per channel over all batches so far.

    Batches are merged by count, mean and squared deviation (Chan, Golub, LeVeque 1979), which is
    accurate in float32, where sums of squares would cancel. Like ``KeyQueue``, it is a module only
    for its ``state_dict``: keep it outside the model that DistributedDataParallel wraps.

    Args:
        channels: Channels of the maps.
        scales: Standardise to variance 1 as well, instead of centring alone.
    """

    merged: Float[Tensor, "3 c"]
    """Count, mean, and sum of squared deviations from the mean."""

    def __init__(self, channels: int, *, scales: bool = True) -> None:
        super().__init__()
        self.scales = scales
        self.register_buffer("merged", torch.zeros(3, channels))

    @staticmethod
    def of(pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "3 c"]:
        """Compute count, mean and sum of squared deviations of one batch."""
        values = pixels.transpose(0, 1).flatten(1).float()
        mean = values.mean(1)
        count = torch.full_like(mean, values.shape[1])
        return torch.stack((count, mean, (values - mean[:, None]).square().sum(1)))

    @torch.no_grad()
    def add(self, batches: Float[Tensor, "n 3 c"]) -> None:
        """Merge the results of :meth:`of` for ``n`` batches, such as those of all processes."""
        for count, mean, squares in batches:
            before, old_mean, old_squares = self.merged
            total, step = before + count, mean - old_mean
            new_mean = old_mean + step * count / total
            new_squares = old_squares + squares + step.square() * before * count / total
            self.merged.copy_(torch.stack((total, new_mean, new_squares)))

    def standardise(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Give each channel mean 0 and, if it scales, variance 1 over all batches so far.

        A constant channel becomes 0.
        """
        count, mean, squares = self.merged
        centred = pixels.float() - mean[:, None, None]
        if self.scales:
            variance = squares / count
            scale = torch.where(variance > 1e-12, variance, 1).rsqrt()
            centred = centred * scale[:, None, None]
        return centred.to(pixels.dtype)

    def of_all(self, pixels: Float[Tensor, "b c h w"]) -> "ChannelMoments":
        """Return moments of the same kind over these maps alone."""
        own = ChannelMoments(pixels.shape[1], scales=self.scales).to(pixels.device)
        own.add(self.of(pixels)[None])
        return own
