"""What the recipes that train a whole backbone on labels share."""

import math
from typing import Any

from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import nn

from pcd_hub.errors import ConfigError
from run_folder import RunFolder


def resume(folder: RunFolder, state: dict[str, Any]) -> int:
    """Load the last checkpoint into ``state``; return how many steps are done."""
    checkpoint = folder.load_checkpoint()
    for name, part in state.items():
        part.load_state_dict(checkpoint[name])
    return int(checkpoint["step"])


def check_loss(loss: float, step: int, lr: float) -> None:
    """Stop a run that has left the numbers.

    Raises:
        ConfigError: If the loss is not finite.
    """
    if not math.isfinite(loss):
        raise ConfigError(f"the loss is {loss} at step {step}; lower --schedule.lr ({lr:.2g} now)")


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
