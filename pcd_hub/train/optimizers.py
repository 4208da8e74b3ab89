"""Optimizers, the learning-rate schedule of pre-training, and the optimizer step."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from pcd_hub.method.muon import Muon
from pcd_hub.method.optim import LARS, decay_groups
from pcd_hub.method.schedule import scaled_lr, warmup_cosine
from pcd_hub.train.configs.distill import DistillOptimConfig, OptimConfig, SpeedConfig
from pcd_hub.train.configs.finetune import SGDConfig


def learning_rate(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Compute the learning rate of ``step``, which is independent of the number of processes."""
    peak = scaled_lr(optim.lr_per_256, global_batch_size=optim.global_batch_size)
    return peak * warmup_cosine(
        step, warmup_steps=warmup_steps(optim, total_steps), total_steps=total_steps
    )


def warmup_steps(optim: OptimConfig, total_steps: int) -> int:
    """Return the number of steps of the linear warm-up."""
    return min(int(optim.warmup_share * total_steps), total_steps - 1)


def head_only_steps(optim: DistillOptimConfig, total_steps: int) -> int:
    """Count the first steps, which train the head alone and leave the student's weights as is."""
    return int(optim.head_only_share * total_steps)


def drop_gradients(module: nn.Module) -> None:
    """Drop the gradients of a module, so that the optimizer skips its parameters and their state.

    They are computed first, because DistributedDataParallel waits for the gradient of every
    parameter.
    """
    for parameter in module.parameters():
        parameter.grad = None


def build_optimizer(
    module: nn.Module, optim: OptimConfig, speed: SpeedConfig, *, heads: Sequence[nn.Module] = ()
) -> torch.optim.Optimizer:
    """Build an optimizer over all trainable parameters; the loop sets the learning rate.

    Args:
        module: The trained module.
        optim: Name and weight decay.
        speed: Whether to use foreach or fused kernels.
        heads: Parts of the module whose weights Muon leaves to AdamW, as is usual for last layers;
            so it leaves tables, such as those of attention biases.
    """
    groups = decay_groups(module, weight_decay=optim.weight_decay)
    match optim.name:
        case "muon":
            others = {id(weight) for head in heads for weight in head.parameters()}
            others |= {
                id(p) for name, p in module.named_parameters() if not name.endswith("weight")
            }
            return Muon(
                [
                    {
                        **group,
                        "params": [p for p in group["params"] if (id(p) in others) != matrices],
                        "matrices": matrices,
                    }
                    for group in groups
                    for matrices in (True, False)
                ],
                lr=0.0,
            )
        case "lars":
            return LARS(groups, lr=0.0, foreach=speed.foreach)
        case "adamw":
            kernels = {"fused": True} if speed.foreach else {"foreach": False}
            return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), **kernels)


def build_sgd(network: nn.Module, config: SGDConfig) -> torch.optim.SGD:
    """Build SGD over all trainable parameters; the loop sets the learning rate."""
    groups = parameter_groups(network, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)


def parameter_groups(network: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters: normalisation layers without weight decay (as detectron2), rest.

    :func:`decay_groups` of the method exempts biases as well.
    """
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


def optimizer_step(
    network: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    *,
    clip_grad_norm: float | None = None,
) -> Tensor:
    """Clip the gradients, take the step, zero the gradients; return their norm before clipping."""
    with record_function("optimizer"):
        norm = gradient_norm(network.parameters(), accelerator)
        if clip_grad_norm is not None:
            accelerator.clip_grad_norm_(network.parameters(), clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return norm


def gradient_norm(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> Tensor:
    """Compute the norm of all gradients; 0 in float16, where GradScaler skips infinite ones."""
    if accelerator.scaler is not None:
        return torch.zeros((), device=accelerator.device)
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)
