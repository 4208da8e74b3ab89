"""Stops a run whose loss or weights are no numbers any more, with the batch that did it."""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pcd_hub.data.loader import Batch
from pcd_hub.errors import ConfigError
from run_folder import RunFolder


class _Step(NamedTuple):
    number: int
    lr: float
    parts: list[Batch]
    loss: Tensor
    bad: Tensor
    """Over all processes, so that all stop at the same step."""


class LossWatch:
    """Looks at every loss, one step late: a GPU is not kept waiting for the number.

    NaN and infinity are found before a checkpoint is written, so the last one stands.
    """

    def __init__(self, accelerator: Accelerator, folder: RunFolder) -> None:
        self._accelerator = accelerator
        self._folder = folder
        self._steps: list[_Step] = []  # the last two: a bad gradient shows in the next loss

    def note(self, number: int, lr: float, parts: list[Batch], loss: Tensor) -> None:
        """Remember this step and look at the one before; called by every process."""
        bad: Tensor = self._accelerator.reduce(~torch.isfinite(loss.detach()), "sum")  # pyright: ignore[reportAssignmentType]
        before, self._steps = self._steps[-1:], [*self._steps[-1:]]
        self._steps.append(_Step(number, lr, parts, loss.detach(), bad))
        for step in before:
            self._check(step)

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
        if bool(step.bad):
            raise ConfigError(
                f"the loss is {float(step.loss)} at step {step.number}; {self._keep(step)}"
            )

    def _keep(self, step: _Step) -> str:
        """Write the last batches for a replay, and say what to do."""
        path = self._folder.path / f"bad_batch_{self._accelerator.process_index}.pt"
        torch.save(
            [
                {"step": kept.number, "indices": part.indices, "views": part.views}
                for kept in self._steps
                for part in kept.parts
            ],
            path,
        )
        return (
            f"lower --optim.lr-per-256 (the rate was {step.lr:.2g}), or look at the last batches "
            f"in {path}. The last checkpoint stands"
        )
