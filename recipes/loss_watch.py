"""Stops a run whose loss, gradient or weights are not finite, with the batch that did it."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pcd_hub.errors import ConfigError
from run_folder import RunFolder


class _Step(NamedTuple):
    number: int
    lr: float
    batch: object
    values: Tensor
    """Loss, and norm of the gradient."""
    bad: Tensor
    """How many of both are not finite, over all processes, so that all stop at the same step."""


class LossWatch:
    """Looks at every step before a checkpoint of it is written, so the last one stands.

    Beside an accelerator it looks one step late, which is not kept waiting for the number.

    Args:
        accelerator: Of the run.
        folder: Where the last batches go.
        lr_option: What to lower, for the error.
    """

    def __init__(self, accelerator: Accelerator, folder: RunFolder, *, lr_option: str) -> None:
        self._accelerator = accelerator
        self._folder = folder
        self._lr_option = lr_option
        self._late = int(accelerator.device.type != "cpu")
        self._steps: list[_Step] = []

    def note(
        self, number: int, lr: float, batch: object, loss: Tensor, gradient_norm: Tensor
    ) -> None:
        """Remember this step, look at it or the one before; called by every process.

        Raises:
            ConfigError: If its loss or gradient is not finite.
        """
        values = torch.stack([loss.detach().float(), gradient_norm.detach().float()])
        bad: Tensor = self._accelerator.reduce((~torch.isfinite(values)).int(), "sum")  # pyright: ignore[reportAssignmentType]
        self._steps = [*self._steps[-1:], _Step(number, lr, batch, values, bad)]
        if self._late < len(self._steps):
            self._check(self._steps[-1 - self._late])

    def check(self, network: nn.Module) -> None:
        """Look at the last step, and at the weights it left.

        Raises:
            ConfigError: If one of them is not finite.
        """
        last = self._steps[-1]
        self._check(last)
        for name, weight in network.state_dict().items():
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise ConfigError(
                    f"after step {last.number} the weight {name} is not finite; {self._keep(last)}"
                )

    def _check(self, step: _Step) -> None:
        of_loss, of_gradient = (bool(count) for count in step.bad)
        if of_loss or of_gradient:
            what = "the loss" if of_loss else "the norm of the gradient"
            value = float(step.values[0 if of_loss else 1])
            raise ConfigError(f"{what} is {value} at step {step.number}; {self._keep(step)}")

    def _keep(self, step: _Step) -> str:
        """Write the last batches for a replay, and say what to do."""
        path = self._folder.path / f"bad_batch_{self._accelerator.process_index}.pt"
        torch.save(
            [{"step": kept.number, "batch": _plain(kept.batch)} for kept in self._steps], path
        )
        return (
            f"lower {self._lr_option} (the rate was {step.lr:.2g}), or look at the last batches "
            f"in {path}. The last checkpoint stands"
        )


def gradient_norm(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> Tensor:
    """Over all parameters; 0 under float16, whose scaler steps over infinity by itself."""
    if accelerator.scaler is not None:
        return torch.zeros((), device=accelerator.device)
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)


def _plain(batch: Any) -> Any:
    """Containers and tensors only, for ``torch.load(..., weights_only=True)``."""
    if dataclasses.is_dataclass(batch):
        return {name: _plain(value) for name, value in vars(batch).items()}
    return [_plain(each) for each in batch] if isinstance(batch, list) else batch
