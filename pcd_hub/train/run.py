"""The training loop that every recipe uses.

    for step, batches in run.steps():
        loss = ...
        accelerator.backward(loss)
        norm = optimizer_step(network, optimizer, accelerator)
        run.end_step(loss, norm)

``steps`` resumes, sets the learning rate and waits for the data. ``end_step`` monitors the values,
logs, writes checkpoints and stops the run on a signal.
"""

import contextlib
import dataclasses
import logging
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import Batch
from pcd_hub.errors import DataError
from pcd_hub.report.png import save_views
from pcd_hub.train.monitors.broken_images import BrokenImages
from pcd_hub.train.monitors.loss import LossMonitor
from pcd_hub.train.monitors.progress import Progress
from pcd_hub.train.run_folder.checkpoints import Checkpoints
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.how_to_continue import how_to_continue
from pcd_hub.train.run_folder.resume import load_parts
from pcd_hub.train.signals import InterruptedStep, StopRequest, stopped_run
from pcd_hub.train.students.shared import SharedStop

log = logging.getLogger("pcd_hub")

BatchT = TypeVar("BatchT")


class TrainingRun(Generic[BatchT]):
    """The loop around the training step, the same for every recipe.

    Args:
        accelerator: Processes, device and precision.
        folder: Folder for metrics, checkpoints and pictures.
        plan: Steps, and how their batches are shared.
        open_batches: Function that opens this process's batches, starting at the plan's start
            step; its second argument gives the positions in a stream, by loader process.
        network: The unwrapped network, whose weights are checked before each checkpoint.
        optimizer: Optimizer as prepared by the Accelerator.
        state: Everything with ``state_dict`` that affects the next step, by name.
        learning_rate: Learning rate by step.
        num_steps: Number of steps after which the run ends, if that may become less than the
            plan's; the same on every process.
        lr_option: Learning-rate option, for the message if the loss is not finite.
        num_images: Images in the source; None if unknown.
        stop_request: Receives the stop signals; one of its own if not given.
        label: Label of the progress bar.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        folder: RunFolder,
        plan: BatchPlan,
        open_batches: Callable[[BatchPlan, dict[int, Any]], Iterator[BatchT]],
        network: nn.Module,
        optimizer: Any,
        state: Mapping[str, Any],
        learning_rate: Callable[[int], float],
        lr_option: str,
        num_steps: Callable[[], int] | None = None,
        num_images: int | None = None,
        stop_request: StopRequest | SharedStop | None = None,
        label: str | None = None,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.open_batches = open_batches
        self._accelerator = accelerator
        self._settings = folder.settings
        self._network = network
        self._optimizer = optimizer
        self._state = dict(state)
        if accelerator.scaler is not None:  # float16: its scale affects the next step
            self._state["scaler"] = accelerator.scaler
        self._stream_states: dict[int, Any] = {}
        self._learning_rate = learning_rate
        self._num_steps = num_steps or (lambda: plan.total_steps)
        self._checkpoints = Checkpoints(folder, accelerator)
        self._losses = LossMonitor(accelerator, folder, lr_option=lr_option)
        self._broken_images = BrokenImages(accelerator, num_images=num_images)
        self._stop_request = stop_request or StopRequest()
        self._label = label
        self._started = False
        self._first_step = self._step = self._done = self._saved = plan.start_step
        self._lr = 0.0
        self._batches: list[BatchT] = []

    def start(self) -> None:
        """Start the trackers, and resume if configured; :meth:`steps` does it if nobody has.

        Raises:
            CheckpointError: If there is nothing to resume from, or the checkpoint does not fit.
        """
        self._started = True
        self.folder.start_trackers()
        if self._settings.resume:
            self._resume()

    @property
    def done(self) -> int:
        """Number of completed steps."""
        return self._done

    def steps(self) -> Generator[tuple[int, list[BatchT]], None, None]:
        """Iterate over (step, this process's batches of it: one per accumulation step).

        Raises:
            CheckpointError: See :meth:`start`.
            DataError: If the images cannot be read.
        """
        if not self._started:
            self.start()
        self._progress = Progress(
            self._accelerator,
            self.plan.global_batch_size,
            start=self._first_step,
            total_steps=self._num_steps(),
            label=self._label,
        )
        self._stop_request.end_with(self._interrupted)
        with self._stop_request, contextlib.closing(self._progress):
            plan = dataclasses.replace(self.plan, start_step=self._first_step)
            batches = self.open_batches(plan, self._stream_states)
            while self._done < self._num_steps():
                self._step = step = self._done
                self._lr = self._learning_rate(step)
                for group in self._optimizer.param_groups:
                    group["lr"] = self._lr
                with self._saving_before_a_failure():
                    self._batches = self._progress.wait_for(batches, plan.accumulation_steps)
                yield step, self._batches
                assert self._done == step + 1, "every step needs end_step"
        self._broken_images.log_total()

    def end_step(
        self, loss: Tensor, norm: Tensor, *, metrics: Mapping[str, float | Tensor] | None = None
    ) -> None:
        """Monitor, log and save the step; call it on every process.

        Args:
            loss: Loss of this process.
            norm: Gradient norm of this process, before clipping.
            metrics: Values to log with the loss: tensors as their mean over all processes, numbers
                from the main process.

        Raises:
            CheckpointError: If the run's folder cannot be written.
            ConfigError: If loss, gradient or weights are not finite.
            DataError: If too many images are broken.
            StoppedRun: If a process has received a stop signal; the step is saved.
        """
        step, batches = self._step, self._batches
        self._progress.set_length(self._num_steps())
        signum = self._losses.record_step(
            step, self._lr, batches, loss, norm, signum=self._stop_request.signum
        )
        images = [batch for batch in batches if isinstance(batch, Batch)]
        self._broken_images.add(images)
        self._stream_states.update(each.stream_state for each in images if each.stream_state)
        if step == self._first_step and images:
            self._save_views(images[0])
        if self._is_logged(step):
            self._log(step, loss, metrics or {})
        self._done = step + 1
        if self._is_saved(step) or signum:
            signum = self._save()
        if self._is_logged(step):
            with self._saving_before_a_failure():
                self._broken_images.check()
        if signum:
            raise stopped_run(signum, self._done, self.folder.path, self._accelerator)

    def save(self) -> None:
        """Save the completed steps, unless they are saved; call it on every process."""
        if self._done > self._saved:
            self._save()

    def _save(self) -> int:
        """Check and save all completed steps; return the stop signal of any process, or 0."""
        signum = self._losses.check_weights(self._network)
        state = {name: part.state_dict() for name, part in self._state.items()}
        self._checkpoints.save(self._done, state, self._stream_states)
        self._saved = self._done
        return signum

    def _interrupted(self) -> InterruptedStep:
        """Return the exception for a second SIGINT."""
        return InterruptedStep(signal.SIGINT, self.folder.path, step=self._saved)

    @contextlib.contextmanager
    def _saving_before_a_failure(self) -> Iterator[None]:
        """Save the completed steps if the images can no longer be read (an unmounted disk).

        Not with several processes: the others may be in the middle of the next step.
        """
        try:
            yield
        except DataError:
            if self._accelerator.num_processes == 1 and self._done > self._saved:
                self._save()
                command = how_to_continue(self.folder.path)
                log.info("saved after step %d; continue with %s", self._done, command)
            raise

    def is_measured(self, step: int) -> bool:
        """Return True if monitors measure this step: the first one and every logged one."""
        return step == self._first_step or self._is_logged(step)

    def _is_logged(self, step: int) -> bool:
        done = step + 1
        return done % self._settings.log_every_steps == 0 or done == self._num_steps()

    def _is_saved(self, step: int) -> bool:
        done = step + 1
        return done % self._settings.checkpoint_every_steps == 0 or done == self._num_steps()

    def _resume(self) -> None:
        checkpoint = self._checkpoints.load(total_steps=self.plan.total_steps)
        load_parts(checkpoint, self._state)
        self._first_step = self._done = self._saved = int(checkpoint["step"])
        self._stream_states = self._checkpoints.stream_states(checkpoint)
        log.info("resumed after step %d of %d", self._first_step, self.plan.total_steps)

    def _save_views(self, batch: Batch) -> None:
        if self._accelerator.is_main_process:
            path = self.folder.path / "pictures" / "views.png"
            with self.folder.writing(path):
                save_views(path, batch.views)
            self.folder.log_pictures()

    def _log(self, step: int, loss: Tensor, metrics: Mapping[str, float | Tensor]) -> None:
        tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
        local = torch.stack([loss.detach(), *(value.detach() for value in tensors.values())])
        means: Any = self._accelerator.reduce(local, "mean")
        mean_loss, *others = means.tolist()
        speed = self._progress.measure(step, mean_loss, self._lr)
        logged = {**metrics, **dict(zip(tensors, others, strict=True))}
        self.folder.write_metrics(step=step, loss=mean_loss, lr=self._lr, **speed, **logged)
