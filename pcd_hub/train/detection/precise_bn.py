"""Precise batch norm: recompute the running statistics with the final weights."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchT = TypeVar("BatchT")


@torch.no_grad()
def recompute_batch_norm_statistics(
    network: nn.Module,
    batches: Iterable[BatchT],
    forward: Callable[[nn.Module, BatchT], object],
    accelerator: Accelerator,
) -> None:
    """Replace the running statistics of every batch norm by those of the given batches.

    The running averages lag behind the weights. Here mean and (biased) variance are computed over
    all values of a layer's input, in all batches and processes: with n_i values of mean m_i and
    variance v_i in pass i,

        mean = sum(n_i m_i) / sum(n_i),    var = sum(n_i (v_i + m_i^2)) / sum(n_i) - mean^2.

    This is detectron2's PreciseBN with fvcore's current estimator (fvcore/nn/precise_bn.py; Wu and
    Johnson, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576, section 3). Frozen norms do not
    change. The network is left in training mode.

    Args:
        network: The unwrapped network, the same on every process.
        batches: This process's batches; every process must have the same number.
        forward: Function that runs the network on a batch.
        accelerator: The run's Accelerator, which sums over processes.
    """
    network.train()
    totals: dict[nn.Module, Tensor] = {
        module: torch.zeros(3, module.num_features, dtype=torch.float64)
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not totals:
        return

    def accumulate(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        totals[norm] += _moments(inputs[0])

    hooks = [norm.register_forward_pre_hook(accumulate) for norm in totals]
    for batch in batches:
        forward(network, batch)
    for hook in hooks:
        hook.remove()
    for norm, own in totals.items():
        total: Any = own
        if accelerator.num_processes > 1:
            total = accelerator.reduce(own.to(accelerator.device), "sum")
        count, first, second = total
        mean = first / count
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_((second / count - mean**2).clamp(min=0))


def _moments(values: Tensor) -> Tensor:
    """Return count, sum and sum of squares of each channel, as 3 x channels in float64."""
    dims = [0, *range(2, values.ndim)]
    variance, mean = torch.var_mean(values.float(), dims, correction=0)
    count = values.numel() // values.shape[1]
    mean, variance = mean.cpu().double(), variance.cpu().double()
    return count * torch.stack([torch.ones_like(mean), mean, variance + mean**2])
