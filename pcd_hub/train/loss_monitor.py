"""Stops a run: all processes at the same step, by a signal, or as its numbers are not finite."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pcd_hub.data.workers import STOP_SIGNALS
from pcd_hub.errors import ConfigError, first_line
from pcd_hub.train.run_folder.folder import RunFolder


class HostCopy:
    """A tensor's values on their way to the host; a CUDA device is not kept waiting for them."""

    def __init__(self, values: Tensor) -> None:
        # From CUDA into pinned memory, in the order of the current stream.
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def tolist(self) -> list[float]:
        """Wait until they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


class _Step(NamedTuple):
    number: int
    lr: float
    batch: object
    values: HostCopy
    """Loss and norm of the gradient of this process; then, over all processes, so that all stop at
    the same step: how many losses and how many norms are not finite, and how many processes have
    received each of the stop signals."""


class LossMonitor:
    """Looks at every step before a checkpoint of it is written, so the last one stands.

    Beside an accelerator it looks one step late, which is not kept waiting for the numbers. Signals
    that ask to stop travel along, so that all processes stop at the same step.

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
        signals = torch.eye(len(STOP_SIGNALS), device=accelerator.device)
        self._received = {
            0: torch.zeros_like(signals[0]),
            **dict(zip(STOP_SIGNALS, signals, strict=True)),
        }

    def note(
        self,
        number: int,
        lr: float,
        batch: object,
        loss: Tensor,
        gradient_norm: Tensor,
        *,
        signum: int = 0,
    ) -> int:
        """Remember this step, look at it or the one before; called by every process.

        Args:
            number: Of the step, from 0.
            lr: Its learning rate.
            batch: What this process has seen in it.
            loss: Of this process.
            gradient_norm: Of this process, before clipping.
            signum: The stop signal that this process has received; 0 for none.

        Returns:
            The stop signal that any process had received in the step that was looked at.

        Raises:
            ConfigError: If its loss or gradient is not finite.
        """
        values = torch.stack([loss.detach().float(), gradient_norm.detach().float()])
        told = torch.cat([(~torch.isfinite(values)).float(), self._received[signum]])
        told: Tensor = self._accelerator.reduce(told, "sum")  # pyright: ignore[reportAssignmentType]
        step = _Step(number, lr, batch, HostCopy(torch.cat([values, told])))
        self._steps = [*self._steps[-1:], step]
        return self._check(self._steps[-1 - self._late]) if self._late < len(self._steps) else 0

    def check(self, network: nn.Module) -> int:
        """Look at the last step, and at the weights it left.

        Returns:
            The stop signal that any process had received in the last step.

        Raises:
            ConfigError: If one of them is not finite.
        """
        last = self._steps[-1]
        signum = self._check(last)
        for name, weight in network.state_dict().items():
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise ConfigError(
                    f"after step {last.number} the weight {name} is not finite; {self._keep(last)}"
                )
        return signum

    def _check(self, step: _Step) -> int:
        loss, norm, bad_losses, bad_norms, *received = step.values.tolist()
        if bad_losses or bad_norms:
            what = "the loss" if bad_losses else "the norm of the gradient"
            value = loss if bad_losses else norm
            raise ConfigError(f"{what} is {value} at step {step.number}; {self._keep(step)}")
        return next((n for n, count in zip(STOP_SIGNALS, received, strict=True) if count), 0)

    def _keep(self, step: _Step) -> str:
        """Write the last batches for a replay, and say what to do."""
        path = self._folder.path / f"bad_batch_{self._accelerator.process_index}.pt"
        steps = [{"step": kept.number, "batch": _plain(kept.batch)} for kept in self._steps]
        look = f", or look at the last batches in {path}"
        try:
            torch.save(steps, path)
        except (OSError, RuntimeError) as error:  # a full disk must not hide the bad number
            look = f"; the last batches cannot be written to {path} ({first_line(error)})"
        return (
            f"lower {self._lr_option} (the rate was {step.lr:.2g}){look}. "
            "The last checkpoint stands"
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
