"""LARS, and parameter groups with and without weight decay."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


class LARS(Optimizer):
    """LARS (arXiv:1708.03888) as in MoCo v3: SGD with momentum and a layer-wise step size.

    For parameters of two or more dimensions, the gradient with weight decay,
    ``g = grad + weight_decay * w``, is multiplied by the trust ratio ``eta * |w| / |g|`` before it
    enters the momentum. Biases and norm parameters (at most one dimension) get neither.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate >= 0 (a schedule may start at 0).
        momentum: Momentum in [0, 1).
        weight_decay: Weight decay >= 0.
        trust_coefficient: eta > 0.
        eps: Added to ``|g|`` to avoid a division by zero.
        foreach: Update all weights together, in a few kernels; False is the reference
            implementation.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        foreach: bool = True,
    ) -> None:
        if (
            lr < 0
            or weight_decay < 0
            or not 0 <= momentum < 1
            or trust_coefficient <= 0
            or eps <= 0
        ):
            raise ValueError(
                f"lr={lr}, weight_decay={weight_decay}, momentum={momentum}, "
                f"trust_coefficient={trust_coefficient}, eps={eps}: expected lr and weight_decay "
                ">= 0, momentum in [0, 1), trust_coefficient and eps > 0"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        loss = loss_of(closure)
        for group in self.param_groups:
            updated = [weight for weight in group["params"] if weight.grad is not None]
            scaled = [weight for weight in updated if weight.ndim > 1]
            plain = [weight for weight in updated if weight.ndim <= 1]
            for weights in (scaled, plain):
                for batch in [weights] if group["foreach"] else [[w] for w in weights]:
                    if batch:
                        self._update(batch, group, scaled=weights is scaled)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any], *, scaled: bool) -> None:
        updates: Any = [weight.grad for weight in weights]
        if scaled:
            updates = torch._foreach_add(updates, weights, alpha=group["weight_decay"])
            ratios = _trust_ratios(weights, updates, group["trust_coefficient"], group["eps"])
            updates = torch._foreach_mul(updates, ratios)
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(weights, buffers, alpha=-group["lr"])


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """Return the loss that a step's closure computes, with gradients; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _trust_ratios(
    weights: list[Tensor], updates: Sequence[Tensor], trust_coefficient: float, eps: float
) -> list[Tensor]:
    """Compute ``eta * |w| / |g|`` of each weight, 1 where either is zero, without a device sync."""
    weight_norms = torch.stack(torch._foreach_norm(weights))
    update_norms = torch.stack(torch._foreach_norm(list(updates)))
    ratios = trust_coefficient * weight_norms / (update_norms + eps)
    nonzero = (weight_norms > 0) & (update_norms > 0)
    return list(torch.where(nonzero, ratios, 1.0).to(updates[0].dtype).unbind())


def decay_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into two groups: two or more dimensions with weight decay, others without.

    Every parameter of ``module`` that requires a gradient is in exactly one group; shared
    parameters appear once.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    not_decayed = [parameter for parameter in trainable if parameter.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
