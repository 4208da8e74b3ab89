"""Muon: momentum whose matrices are orthogonalised, with AdamW for all other parameters."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from pcd_hub.method.optim import loss_of

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration of Newton-Schulz in the Muon blog post (Jordan et al. 2024)."""
_ITERATIONS = 5
_EPS = 1e-7
_BLOCK_ROWS = 64
"""Most rows that are orthogonalised together. The time of a step grows with it. The loss of a
ResNet-18 did not depend on it (one seed, on a CPU; recipes/RESULTS.md, "Finer maps, centred targets
and Muon")."""


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for the rest.

    The momentum of a weight, as a matrix of outputs x inputs, is replaced by the nearest matrix
    with orthonormal rows or columns, so that every direction is learned at the same rate. Large
    matrices are split into blocks of up to 64 rows, or columns if these are fewer, each on its own
    (as the steps between the full ones of arXiv:2510.16981), which costs a fraction of the time.
    The update has the root mean square of AdamW's (arXiv:2502.16982), so both share learning rate
    and weight decay. Biases, norms and depthwise convolutions, which are no matrices, get AdamW; a
    grouped convolution counts as one matrix.

    Args:
        params: Parameters or parameter groups; a group with ``"matrices": False`` gets AdamW.
        lr: Learning rate >= 0 (a schedule may start at 0).
        momentum: Momentum of the matrices in [0, 1), Nesterov's.
        betas: Decay rates of AdamW's two means.
        weight_decay: Decoupled weight decay >= 0.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not all(0 <= each < 1 for each in (momentum, *betas)):
            raise ValueError(
                f"lr={lr}, weight_decay={weight_decay}, momentum={momentum}, betas={betas}: "
                "expected lr and weight_decay >= 0, momentum and betas in [0, 1)"
            )
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "matrices": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        loss = loss_of(closure)
        for group in self.param_groups:
            matrices: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            others = []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if group["matrices"] and _is_matrix(weight):
                    matrices[len(weight), weight.numel() // len(weight)].append(weight)
                else:
                    others.append(weight)
            for shape, weights in matrices.items():
                self._update_matrices(weights, shape, group)
            self._update_others(others, group)
        return loss

    def _update_matrices(
        self, weights: list[Tensor], shape: tuple[int, int], group: dict[str, Any]
    ) -> None:
        """Update weights of one shape together."""
        momentum, lr = group["momentum"], group["lr"]
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        gradients: list[Any] = [weight.grad for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        matrices = orthogonalise(torch.stack([each.reshape(shape) for each in ahead]))
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        for weight, update in zip(weights, matrices, strict=True):
            weight.add_(update.reshape(weight.shape), alpha=-lr * 0.2 * math.sqrt(max(shape)))

    def _update_others(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        if not weights:
            return
        for weight in weights:
            if "step" not in self.state[weight]:
                self.state[weight]["exp_avg"] = torch.zeros_like(weight)
                self.state[weight]["exp_avg_sq"] = torch.zeros_like(weight)
                self.state[weight]["step"] = torch.zeros((), dtype=torch.float32)
        states = [self.state[weight] for weight in weights]
        adamw(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def _is_matrix(weight: Tensor) -> bool:
    """Check whether a weight has several outputs and inputs; a depthwise convolution has not."""
    return weight.ndim > 1 and min(weight.shape[:2]) > 1


def orthogonalise(matrices: Float[Tensor, "b m n"]) -> Float[Tensor, "b m n"]:
    """Set all singular values of each block of rows to between about 0.7 and 1.2.

    A block has up to 64 rows; of columns, if these are fewer than the rows. Five steps of
    Newton-Schulz's iteration. GPUs take them on the blocks in bfloat16. On CPUs they are taken in
    float32 on the product of a block with its transpose, which is smaller.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT).mT
    count, rows, columns = matrices.shape
    parts = math.ceil(rows / _BLOCK_ROWS)
    missing = -rows % parts
    padded = nn.functional.pad(matrices, (0, 0, 0, missing))  # a row of zeros stays one
    blocks = padded.reshape(count * parts, -1, columns)
    iterate = _iterate_on_products if matrices.device.type == "cpu" else _iterate
    result = iterate(blocks / (blocks.norm(dim=(1, 2), keepdim=True) + _EPS))
    return result.reshape(count, -1, columns)[:, :rows]


def _iterate(matrices: Float[Tensor, "b m n"]) -> Float[Tensor, "b m n"]:
    a, b, c = _COEFFICIENTS
    values = matrices.bfloat16()
    for _ in range(_ITERATIONS):
        products = values @ values.mT
        values = a * values + (b * products + c * products @ products) @ values
    return values.to(matrices.dtype)


def _iterate_on_products(matrices: Float[Tensor, "b m n"]) -> Float[Tensor, "b m n"]:
    """Take the same steps on ``X X^T``: all factors are polynomials in it, so they commute."""
    a, b, c = _COEFFICIENTS
    products = matrices @ matrices.mT
    one = torch.eye(matrices.shape[1], dtype=matrices.dtype)
    factors = one
    for iteration in range(_ITERATIONS):
        step = a * one + b * products + c * (products @ products)
        factors = step @ factors if iteration else step
        if iteration < _ITERATIONS - 1:
            products = step @ products @ step
    return factors @ matrices
