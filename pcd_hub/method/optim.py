"""The optimizer of the method, and the split of parameters by weight decay."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose step is scaled per layer by ``eta * |w| / |g|``.

    LARS (arXiv:1708.03888), as in MoCo v3.

    For parameters of more than one dimension the decayed gradient ``g = grad + weight_decay * w``
    is multiplied by the trust ratio before it enters the momentum. Biases and norm parameters (one
    dimension or none) get neither.

    Args:
        params: Parameters or groups.
        lr: Learning rate > 0 (0 is allowed, as a schedule may start there).
        momentum: In [0, 1).
        weight_decay: At least 0.
        trust_coefficient: eta.
        eps: Added to ``|g|``, so that a zero gradient does no harm.
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
    ) -> None:
        if (
            lr < 0
            or weight_decay < 0
            or not 0 <= momentum < 1
            or trust_coefficient <= 0
            or eps <= 0
        ):
            raise ValueError(
                f"lr={lr} and weight_decay={weight_decay} must be at least 0, "
                f"momentum={momentum} in [0, 1), "
                f"trust_coefficient={trust_coefficient} and eps={eps} greater than 0"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        update = weight.grad
        assert update is not None
        if weight.ndim > 1:
            update = update.add(weight, alpha=group["weight_decay"])
            weight_norm, update_norm = weight.norm(), update.norm()
            trust = group["trust_coefficient"] * weight_norm / (update_norm + group["eps"])
            update = update * torch.where(
                (weight_norm > 0) & (update_norm > 0), trust, torch.ones_like(trust)
            )
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(update)
        weight.add_(buffer, alpha=-group["lr"])


def decay_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: weights of two or more dimensions decay, biases and norms do not.

    Every parameter of ``module`` that requires a gradient is in exactly one group, whatever layer
    owns it; shared parameters appear once.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    spared = [parameter for parameter in trainable if parameter.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
