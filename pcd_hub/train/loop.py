"""What every training recipe shares: sources, optimizer, loop around a step, progress line."""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.profiler import record_function
from tqdm import tqdm

from pcd_hub.data.loader import Batch, BatchPlan, StepSampler, training_batches
from pcd_hub.data.sources import ImageSource, ImageStream, open_source
from pcd_hub.data.views import byol_views
from pcd_hub.data.workers import default_workers
from pcd_hub.errors import ConfigError, DataError, StudentError
from pcd_hub.method.optim import LARS, decay_groups
from pcd_hub.method.schedule import scaled_lr, warmup_cosine
from pcd_hub.models.entries import build_arguments, check_architecture, entry_cfg
from pcd_hub.models.grid import PixelGrid, pixel_grid
from pcd_hub.report.png import save_views
from pcd_hub.train.configs.distill import DataConfig, OptimConfig, RunConfig, SpeedConfig
from pcd_hub.train.loss_monitor import LossMonitor, gradient_norm
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.resume import load_parts
from pcd_hub.train.signals import StopRequest, stopped_run

log = logging.getLogger("pcd_hub")

BatchT = TypeVar("BatchT")

_BROKEN_SHARE = 0.01
_MOST_NAMED = 10
_FEWEST_FOR_A_SHARE = 1000  # of a stream, whose length is not known


@dataclass(kw_only=True)
class Training:
    """One run of a recipe, ready to start."""

    accelerator: Accelerator
    folder: RunFolder
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    source: ImageSource | ImageStream
    plan: BatchPlan
    network: nn.Module
    """What is trained, not wrapped."""
    optimizer: Any
    """As prepared by the Accelerator."""
    state: dict[str, Any]
    """Everything with ``state_dict`` that affects the next step, by name."""
    look: Callable[[int], dict[str, float]] = lambda _: {}
    """Given the step's number: what else is measured of it, by the main process."""


TakeStep = Callable[[list[Batch], int], tuple[Tensor, Tensor]]
"""Given the batches of one global step (one for each accumulation part) and the step's number,
update everything; return this process's mean loss, and the norm of the gradient."""


def train(training: Training, take_step: TakeStep) -> None:
    """Run all steps: learning rate before the step, metrics, checkpoints, resume."""
    accelerator, folder, run = training.accelerator, training.folder, training.run
    folder.start_trackers()
    if accelerator.scaler is not None:  # fp16: its scale affects the next step
        training.state["scaler"] = accelerator.scaler
    start, stream_states = _resume(training) if run.resume else (0, {})
    broken = BrokenImages(training.source, accelerator)
    watch = LossMonitor(accelerator, folder, lr_option="--optim.lr-per-256")
    progress = Progress(
        accelerator, training.optim.global_batch_size, start=start, steps=training.plan.total_steps
    )
    with StopRequest() as asked:
        batches = open_batches(training, start, stream_states)
        for step in range(start, training.plan.total_steps):
            lr = learning_rate(step, training.optim, training.plan.total_steps)
            for group in training.optimizer.param_groups:
                group["lr"] = lr
            parts = progress.wait_for(batches, training.optim.accumulation_steps)
            loss, norm = take_step(parts, step)
            signum = watch.note(step, lr, parts, loss, norm, signum=asked.signum)

            last = step + 1 == training.plan.total_steps
            broken.note(parts)
            stream_states.update(part.stream_state for part in parts if part.stream_state)
            if step == start and accelerator.is_main_process:
                views = folder.path / "pictures" / "views.png"
                with folder.writing(views):
                    save_views(views, parts[0].views)
                folder.log_pictures()
            due = (step + 1) % run.log_every_steps == 0 or last
            looks = accelerator.is_main_process and (due or step == start)
            seen = training.look(step) if looks else {}
            if due:
                broken.check()
                mean_loss = float(accelerator.reduce(loss.detach(), "mean"))  # pyright: ignore[reportArgumentType]
                speed = progress.measure(step, mean_loss)
                folder.write_metrics(step=step, loss=mean_loss, lr=lr, **speed, **seen)
            if (step + 1) % run.checkpoint_every_steps == 0 or last or signum:
                signum = watch.check(training.network)
                state = {name: part.state_dict() for name, part in training.state.items()}
                folder.save_checkpoint(step + 1, state, stream_states)
            if signum:
                raise stopped_run(signum, step + 1, folder.path, accelerator)
    progress.close()
    broken.sum_up()


def learning_rate(step: int, optim: OptimConfig, steps: int) -> float:
    """The learning rate of ``step``; the same however many processes share the global batch."""
    peak = scaled_lr(optim.lr_per_256, global_batch_size=optim.global_batch_size)
    warmup_steps = min(int(optim.warmup_share * steps), steps - 1)
    return peak * warmup_cosine(step, warmup_steps=warmup_steps, total_steps=steps)


def _resume(training: Training) -> tuple[int, dict[int, Any]]:
    checkpoint = training.folder.load_checkpoint(steps=training.plan.total_steps)
    load_parts(checkpoint, training.state)
    log.info("resumed after step %d of %d", checkpoint["step"], training.plan.total_steps)
    return int(checkpoint["step"]), training.folder.stream_states(checkpoint)


def open_batches(
    training: Training, start_step: int, stream_states: dict[int, Any]
) -> Iterator[Batch]:
    """The batches of this process, from ``start_step`` on."""
    data, device = training.data, training.accelerator.device
    views = byol_views(
        data.image_size,
        seed=training.run.seed,
        crop_area=(data.min_crop_area, data.max_crop_area),
        hue=data.hue,
        gray_probability=data.gray_probability,
        renderer=data.renderer,
    )
    workers = data.num_workers if data.num_workers is not None else default_workers(device)
    return training_batches(
        training.source,
        views,
        dataclasses.replace(training.plan, start_step=start_step),
        num_workers=workers,
        shuffle_buffer=data.shuffle_buffer,
        stream_states=stream_states,
        pin_memory=device.type == "cuda",
    )


def open_training_source(data: DataConfig, accelerator: Accelerator) -> ImageSource | ImageStream:
    """The images, split by process where they can only be read in order."""
    return open_source(
        data.source, rank=accelerator.process_index, world_size=accelerator.num_processes
    )


def data_facts(training: Training) -> dict[str, Any]:
    """What a record says of the data."""
    source = training.source
    return {
        "source": training.data.source,
        "fingerprint": training.folder.inputs["data"],
        "images": len(source) if isinstance(source, ImageSource) else None,
    }


def plan_batches(
    source: ImageSource | ImageStream, optim: OptimConfig, run: RunConfig, accelerator: Accelerator
) -> BatchPlan:
    """How many steps, and how their batches are shared.

    Raises:
        ConfigError: If a stream comes without ``--run.max-steps``.
        DataError: If the global batch does not divide, or is larger than the data set.
    """
    plan = BatchPlan(
        global_batch_size=optim.global_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulation_steps=optim.accumulation_steps,
        seed=run.seed,
        total_steps=run.max_steps or 0,
    )
    if isinstance(source, ImageSource):
        epoch = steps_per_epoch(source, plan)
        if run.max_steps is None:
            plan = dataclasses.replace(plan, total_steps=optim.epochs * epoch)
    elif run.max_steps is None:
        raise ConfigError("the length of a stream is not known; give --run.max-steps")
    return plan


def steps_per_epoch(source: ImageSource | ImageStream, plan: BatchPlan) -> int:
    """Of a stream, whose length is not known, as many as have 100,000 images.

    Raises:
        DataError: If the data set is smaller than one global batch.
    """
    if isinstance(source, ImageStream):
        return 100_000 // plan.global_batch_size
    return StepSampler(len(source), plan).steps_per_epoch


def build_backbone(arch: str, *, image_size: int) -> PixelGrid:
    """A timm backbone at random start, as a pixel grid.

    Raises:
        StudentError: If timm has no such architecture, or it cannot take ``image_size``.
    """
    check_architecture(arch)
    arguments = build_arguments(arch, image_size)
    try:
        model = timm.create_model(arch, pretrained=False, num_classes=0, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise StudentError(f"timm cannot build {arch} for {image_size} px: {error}") from error
    return pixel_grid(model, image_size=image_size)


def build_optimizer(
    module: nn.Module, optim: OptimConfig, speed: SpeedConfig
) -> torch.optim.Optimizer:
    """LARS or AdamW over every trainable parameter; the learning rate is set before each step."""
    groups = decay_groups(module, weight_decay=optim.weight_decay)
    match optim.name:
        case "lars":
            return LARS(groups, lr=0.0, foreach=speed.foreach)
        case "adamw":
            how = {"fused": True} if speed.foreach else {"foreach": False}
            return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), **how)


def update(
    wrapped: nn.Module, optimizer: Any, accelerator: Accelerator, optim: OptimConfig
) -> Tensor:
    """Clip, step, and forget the gradients; return their norm before all that."""
    with record_function("optimizer"):
        norm = gradient_norm(wrapped.parameters(), accelerator)
        if optim.clip_grad_norm is not None:
            accelerator.clip_grad_norm_(wrapped.parameters(), optim.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return norm


def with_sync_batch_norm(
    module: nn.Module, optim: OptimConfig, accelerator: Accelerator
) -> nn.Module:
    """``module`` with batch statistics over all processes, where that exists."""
    if accelerator.num_processes == 1 or not optim.sync_batch_norm:
        return module
    if accelerator.device.type != "cuda":
        log.info(
            "BatchNorm looks at each process's own part of the batch: "
            "SyncBatchNorm exists on GPUs only"
        )
        return module
    return convert_sync_batchnorm(module)  # timm's keeps the activation inside BatchNormAct2d


def memory_format(*, channels_last: bool) -> torch.memory_format:
    """How maps and weights lie in memory; channels last is what convolutions are fastest on."""
    return torch.channels_last if channels_last else torch.contiguous_format


class Normalise:
    """Batches as float images in [0, 1], and the student's normalisation.

    The first view of all images, then the second view of all.
    """

    def __init__(self, arch: str, device: torch.device, *, channels_last: bool = True) -> None:
        self._layout = memory_format(channels_last=channels_last)
        cfg = entry_cfg(arch)
        self._mean = torch.tensor(cfg.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(cfg.std, device=device).view(3, 1, 1)
        self._device = device

    def images(self, batch: Batch) -> Tensor:
        """``(2 B, 3, S, S)`` in [0, 1]."""
        views = batch.views.to(self._device, non_blocking=True).transpose(0, 1).flatten(0, 1)
        return (views / 255).contiguous(memory_format=self._layout)

    def example(self, count: int, size: int) -> Tensor:
        """Black images ``(count, 3, size, size)``, laid out as those of a batch."""
        images = torch.zeros(count, 3, size, size, device=self._device)
        return images.contiguous(memory_format=self._layout)

    def __call__(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._std


class BrokenImages:
    """Counts and names the images that could not be read, over all processes."""

    def __init__(self, source: ImageSource | ImageStream, accelerator: Accelerator) -> None:
        self._total = len(source) if isinstance(source, ImageSource) else None
        self._accelerator = accelerator
        self._fresh: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._rows_seen = 0

    def note(self, batches: list[Batch]) -> None:
        """Remember what these batches report."""
        for batch in batches:
            self._fresh.update(batch.broken)
            self._rows_seen += len(batch.indices) + len(batch.broken)

    def check(self) -> None:
        """Name new ones in the log; called by every process.

        Raises:
            DataError: If more than 1 % of the images are broken.
        """
        gathered = gather_object([(self._rows_seen, list(self._fresh.items()))])
        found = itertools.chain.from_iterable(items for _, items in gathered)
        fresh = {name: why for name, why in found if name not in self._known}
        self._fresh.clear()
        for name, why in itertools.islice(fresh.items(), max(0, _MOST_NAMED - len(self._known))):
            log.warning("skipped a broken image: %s (%s)", name, why)
        self._known |= fresh
        total = self._total or max(sum(rows for rows, _ in gathered), _FEWEST_FOR_A_SHARE)
        if len(self._known) > _BROKEN_SHARE * total:
            name, why = next(iter(self._known.items()))
            raise DataError(
                f"{len(self._known)} of {total} images cannot be read, "
                f"more than {_BROKEN_SHARE:.0%}; "
                f"mend or remove them, first {name} ({why})"
            )

    def sum_up(self) -> None:
        """Say how many there were."""
        if self._known:
            log.warning("%d broken images were skipped in all", len(self._known))


class Progress:
    """The bar on the main process, and the speed of the last steps."""

    def __init__(
        self, accelerator: Accelerator, global_batch_size: int, *, start: int, steps: int
    ) -> None:
        self._bar = tqdm(
            total=steps,
            initial=start,
            disable=not accelerator.is_main_process,
            unit="step",
            dynamic_ncols=True,
        )
        self._global_batch_size = global_batch_size
        self._step = start
        self._since = time.perf_counter()
        self._waited = 0.0

    def wait_for(self, batches: Iterator[BatchT], count: int) -> list[BatchT]:
        """The next ``count`` batches; the time it takes is data wait."""
        before = time.perf_counter()
        taken = list(itertools.islice(batches, count))
        self._waited += time.perf_counter() - before
        return taken

    def measure(self, step: int, loss: float) -> dict[str, float]:
        """Since the last call: images/s (each in two views), and the share of time in data wait."""
        now = time.perf_counter()
        seconds, steps = now - self._since, step + 1 - self._step
        speed = steps * self._global_batch_size / seconds
        metrics = {"images_per_s": round(speed, 2), "data_wait": round(self._waited / seconds, 4)}
        self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:.1f} images/s")
        self._bar.update(steps)
        self._since, self._step, self._waited = now, step + 1, 0.0
        return metrics

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()
