"""Stop all processes of a run at the same step, on a signal or on non-finite values."""

import dataclasses
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pcd_hub.data.workers import STOP_SIGNALS
from pcd_hub.errors import ConfigError, first_line
from pcd_hub.train.run_folder.folder import RunFolder


class HostCopy:
    """Asynchronous copy of a tensor's values to the host: a CUDA device does not wait for it."""

    def __init__(self, values: Tensor) -> None:
        # From CUDA into pinned memory, in the order of the current stream.
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._copied = torch.cuda.Event() if values.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def tolist(self) -> list[float]:
        """Wait for the copy and return its values."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


class _Step(NamedTuple):
    number: int
    lr: float
    batches: object
    values: HostCopy
    """Loss and gradient norm of this process, then sums over all processes, so that all stop at
    the same step: the number of losses and of norms that are not finite, and the number of
    processes that have received each stop signal."""


class LossMonitor:
    """Check every step before it is saved, so that the last checkpoint is always valid.

    On an accelerator, a step is checked one step late, so that the device never waits for the host.
    Stop signals are exchanged with the same values, so that all processes stop at the same step.

    Args:
        accelerator: The run's Accelerator.
        folder: Folder in which the last batches are saved.
        lr_option: Learning-rate option that the error message suggests lowering.
    """

    def __init__(self, accelerator: Accelerator, folder: RunFolder, *, lr_option: str) -> None:
        self._accelerator = accelerator
        self._folder = folder
        self._lr_option = lr_option
        self._delay = int(accelerator.device.type != "cpu")
        self._steps: list[_Step] = []
        signals = torch.eye(len(STOP_SIGNALS), device=accelerator.device)
        self._one_hot = {
            0: torch.zeros_like(signals[0]),
            **dict(zip(STOP_SIGNALS, signals, strict=True)),
        }

    def record_step(
        self,
        number: int,
        lr: float,
        batches: object,
        loss: Tensor,
        gradient_norm: Tensor,
        *,
        signum: int = 0,
    ) -> int:
        """Record this step and check it, or the one before; call it on every process.

        Args:
            number: Number of the step, from 0.
            lr: Learning rate of the step.
            batches: Batches of this process in the step.
            loss: Loss of this process.
            gradient_norm: Gradient norm of this process, before clipping.
            signum: Stop signal that this process has received; 0 for none.

        Returns:
            The stop signal that any process had received in the step that was checked; 0 for none.

        Raises:
            ConfigError: If the loss or the gradient of that step is not finite.
        """
        values = torch.stack([loss.detach().float(), gradient_norm.detach().float()])
        counts = torch.cat([(~torch.isfinite(values)).float(), self._one_hot[signum]])
        counts: Tensor = self._accelerator.reduce(counts, "sum")  # pyright: ignore[reportAssignmentType]
        step = _Step(number, lr, batches, HostCopy(torch.cat([values, counts])))
        self._steps = [*self._steps[-1:], step]
        if len(self._steps) <= self._delay:
            return 0
        return self._check_values(self._steps[-1 - self._delay])

    def check_weights(self, network: nn.Module) -> int:
        """Check the last step and the weights after it.

        Returns:
            The stop signal that any process had received in the last step; 0 for none.

        Raises:
            ConfigError: If its loss, its gradient or a weight is not finite.
        """
        last = self._steps[-1]
        signum = self._check_values(last)
        for name, weight in network.state_dict().items():
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise ConfigError(
                    f"after step {last.number} the weight {name} is not finite; "
                    f"{self._save_batches(last)}"
                )
        return signum

    def _check_values(self, step: _Step) -> int:
        loss, norm, bad_losses, bad_norms, *received = step.values.tolist()
        if bad_losses or bad_norms:
            name = "the loss" if bad_losses else "the norm of the gradient"
            value = loss if bad_losses else norm
            raise ConfigError(
                f"{name} is {value} at step {step.number}; {self._save_batches(step)}"
            )
        return next((n for n, count in zip(STOP_SIGNALS, received, strict=True) if count), 0)

    def _save_batches(self, step: _Step) -> str:
        """Save the last batches for inspection, and return the remedy."""
        path = self._folder.path / f"bad_batch_{self._accelerator.process_index}.pt"
        steps = [{"step": each.number, "batch": _plain(each.batches)} for each in self._steps]
        inspect = f", or inspect the last batches in {path}"
        try:
            torch.save(steps, path)
        except (OSError, RuntimeError) as error:  # a full disk must not hide the bad value
            inspect = f"; cannot write the last batches to {path} ({first_line(error)})"
        if step.number == 0:  # the weights are those of the start
            return (
                "teacher, student or images give values that are not finite before the first "
                f"update{inspect}"
            )
        is_saved = any(self._folder.checkpoints.glob("step_*.pt"))
        return (
            f"lower {self._lr_option} (it was {step.lr:.2g} at this step){inspect}"
            + ". The last checkpoint is good" * is_saved
        )


def _plain(batch: Any) -> Any:
    """Convert to containers and tensors only, for ``torch.load(..., weights_only=True)``."""
    if dataclasses.is_dataclass(batch):
        return {name: _plain(value) for name, value in vars(batch).items()}
    if hasattr(batch, "_asdict"):
        return batch._asdict()
    return [_plain(each) for each in batch] if isinstance(batch, list) else batch
