"""What the recipes that train a whole backbone on labels share: the loop, SGD, batches, resume."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from pcd_hub.data.loader import BatchPlan
from pcd_hub.data.workers import default_workers
from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.finetune import FinetuneRunConfig, SGDScheduleConfig
from pcd_hub.train.loop import Progress
from pcd_hub.train.loss_monitor import LossMonitor, gradient_norm
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.resume import load_parts
from pcd_hub.train.signals import StopRequest, stopped_run

BatchT = TypeVar("BatchT")


class Schedule(Protocol):
    """In optimizer steps of this run."""

    @property
    def steps(self) -> int: ...

    def learning_rate(self, step: int) -> float:
        """Of ``step``, counted from 0."""
        ...


def train(
    wrapped: nn.Module,
    batches_of: Callable[[BatchPlan], Iterator[BatchT]],
    losses_of: Callable[[nn.Module, BatchT], dict[str, Tensor]],
    *,
    optimizer: Any,
    schedule: Schedule,
    plan: BatchPlan,
    run: FinetuneRunConfig,
    folder: RunFolder,
    accelerator: Accelerator,
) -> None:
    """All steps: learning rate before the step, metrics, checkpoints, resume.

    Args:
        wrapped: The network, as prepared by the Accelerator.
        batches_of: This process's part of every global batch, from the plan's ``start_step`` on.
        losses_of: Given ``wrapped`` and a batch, the parts of the loss by name; their sum is it.
        optimizer: As prepared by the Accelerator.
        schedule: Learning rate by step.
        plan: How the global batch is shared, from the first step on.
        run: How long, and what is kept.
        folder: Of the run.
        accelerator: Precision and processes.

    Raises:
        CheckpointError: If there is nothing to resume from, or another configuration wrote it.
        ConfigError: If loss, gradient or weights are not finite.
    """
    folder.start_trackers()
    network = accelerator.unwrap_model(wrapped)
    state: dict[str, Any] = {"network": network, "optimizer": optimizer}
    if accelerator.scaler is not None:  # fp16: its scale affects the next step
        state["scaler"] = accelerator.scaler
    # Of what is drawn inside the network: dropout, the regions that are sampled.
    torch.manual_seed(run.seed + accelerator.process_index)
    start = resume(folder, state, steps=schedule.steps) if run.resume else 0
    progress = Progress(accelerator, plan.global_batch_size, start=start, steps=schedule.steps)
    watch = LossMonitor(accelerator, folder, lr_option="--optim.lr")
    wrapped.train()
    with StopRequest() as asked:
        batches = batches_of(dataclasses.replace(plan, start_step=start))
        for step in range(start, schedule.steps):
            lr = schedule.learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            (batch,) = progress.wait_for(batches, 1)
            with accelerator.autocast():
                losses = losses_of(wrapped, batch)
                loss = torch.stack(list(losses.values())).sum()
            accelerator.backward(loss)
            norm = gradient_norm(wrapped.parameters(), accelerator)
            optimizer.step()
            optimizer.zero_grad()
            signum = watch.note(step, lr, batch, loss, norm, signum=asked.signum)

            last = step + 1 == schedule.steps
            if (step + 1) % run.log_every_steps == 0 or last:
                parts = mean_losses(losses, accelerator)
                speed = progress.measure(step, parts["loss"])
                folder.write_metrics(step=step, **parts, lr=lr, **speed)
            if (step + 1) % run.checkpoint_every_steps == 0 or last or signum:
                signum = watch.check(network)
                folder.save_checkpoint(step + 1, {k: v.state_dict() for k, v in state.items()}, {})
            if signum:
                raise stopped_run(signum, step + 1, folder.path, accelerator)
    progress.close()
    for buffer in network.buffers():  # each process has seen other batch statistics
        broadcast(buffer)


def mean_losses(losses: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """The loss and its parts, over all processes."""
    parts: Any = accelerator.reduce(torch.stack(list(losses.values())).detach(), "mean")
    named = zip(losses, map(float, parts), strict=True)
    return {"loss": float(parts.sum()), **dict(named)}


def plan_batches(
    schedule: Schedule,
    run: FinetuneRunConfig,
    accelerator: Accelerator,
    *,
    global_batch_size: int,
    num_images: int,
    images: str,
) -> BatchPlan:
    """How the global batch is shared.

    Args:
        schedule: How many steps.
        run: The seed.
        accelerator: How many processes.
        global_batch_size: Images a step.
        num_images: How many there are to train on.
        images: The same in words, for the error: "DIR has 5 images".

    Raises:
        ConfigError: If there are fewer images than one batch holds.
        DataError: If the batch does not divide by the number of processes.
    """
    if num_images < global_batch_size:
        raise ConfigError(
            f"{images}, fewer than one batch of {global_batch_size}; "
            "lower --optim.global-batch-size"
        )
    return BatchPlan(
        global_batch_size=global_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=run.seed,
        total_steps=schedule.steps,
    )


def num_workers(asked: int | None, accelerator: Accelerator) -> int:
    """Processes that read images, per training process."""
    return default_workers(accelerator.device) if asked is None else asked


def resume(folder: RunFolder, state: dict[str, Any], *, steps: int) -> int:
    """Load the last checkpoint into ``state``; return how many of ``steps`` are done."""
    checkpoint = folder.load_checkpoint(steps=steps)
    load_parts(checkpoint, state)
    return int(checkpoint["step"])


class DataSet(Protocol):
    """Images with labels."""

    def fingerprint(self) -> str:
        """A short text that changes when the set does."""
        ...


def inputs_of(
    model: str, weights_sha256: str | None, train_set: DataSet, test_set: DataSet
) -> dict[str, str]:
    """Fingerprints of what a run begins with, for :meth:`RunFolder.open`."""
    weights = f"weights sha256 {weights_sha256}" if weights_sha256 else "no stored weights"
    return {
        "backbone": f"{model}, {weights}",
        "data": train_set.fingerprint(),
        "test data": test_set.fingerprint(),
    }


def shard(count: int, process_index: int, num_processes: int) -> range:
    """The pictures of one process; together the processes have each picture once."""
    return range(process_index, count, num_processes)


def with_sync_batch_norm(
    module: nn.Module, norm: str, option: str, accelerator: Accelerator
) -> nn.Module:
    """Batch statistics over all processes if asked for; one process has all of them anyway.

    Args:
        module: The whole network.
        norm: "sync", or anything else to leave it as it is.
        option: Where ``norm`` was said, for the error.
        accelerator: How many processes there are, and on what.

    Raises:
        ConfigError: On CPUs, where processes cannot share batch statistics.
    """
    if norm != "sync" or accelerator.num_processes == 1:
        return module
    if accelerator.device.type != "cuda":
        raise ConfigError(
            f"{option} sync: on CPUs {accelerator.num_processes} processes cannot share batch "
            f"statistics; use {option} batch or frozen, or one process"
        )
    return convert_sync_batchnorm(module)


def sgd(network: nn.Module, config: SGDScheduleConfig) -> torch.optim.SGD:
    """Over everything that is trained; the learning rate is set before each step."""
    groups = parameter_groups(network, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)


def parameter_groups(network: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters: batch norm's without weight decay, as detectron2 does, then the rest."""
    norms = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
        for parameter in module.parameters(recurse=False)
    }
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": 0.0},
    ]
