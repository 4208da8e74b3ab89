"""Networks of the training recipes: random backbone, SyncBatchNorm, memory format."""

import logging

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.layers import convert_sync_batchnorm
from torch import nn

from pcd_hub.errors import ConfigError, StudentError
from pcd_hub.image_size import ImageSize, format_size
from pcd_hub.models.entries import build_arguments, check_architecture
from pcd_hub.models.grid import PixelGrid, pixel_grid

log = logging.getLogger("pcd_hub")


def build_backbone(arch: str, *, image_size: ImageSize, in_chans: int = 3) -> PixelGrid:
    """Build a timm backbone with random weights and its last feature map as output.

    Raises:
        StudentError: If timm has no such architecture, or it cannot take ``image_size``.
    """
    check_architecture(arch)
    arguments = build_arguments(arch, image_size, in_chans=in_chans)
    try:
        model = timm.create_model(arch, pretrained=False, num_classes=0, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        size = format_size(image_size)
        raise StudentError(f"timm cannot build {arch} for {size} px: {error}") from error
    return pixel_grid(model, image_size=image_size, in_chans=in_chans)


def with_sync_batch_norm(
    network: nn.Module, accelerator: Accelerator, *, required_by: str | None = None
) -> nn.Module:
    """Compute batch statistics over all processes (SyncBatchNorm); one process needs no change.

    Args:
        network: The whole network.
        accelerator: The run's Accelerator.
        required_by: Option that requires it; None if local batch statistics suffice.

    Raises:
        ConfigError: If it is required on CPUs, where SyncBatchNorm does not exist.
    """
    if accelerator.num_processes == 1:
        return network
    if accelerator.device.type == "cuda":
        return convert_sync_batchnorm(network)  # timm's keeps the activation in BatchNormAct2d
    if required_by is not None:
        option = required_by.partition(" ")[0]
        raise ConfigError(
            f"{required_by}: SyncBatchNorm needs GPUs, found {accelerator.num_processes} CPU "
            f"processes; use {option} batch or frozen, or one process"
        )
    log.info("batch statistics are local to each process: SyncBatchNorm needs GPUs")
    return network


def broadcast_buffers(network: nn.Module) -> None:
    """Copy the main process's buffers to all processes, whose running statistics differ."""
    for buffer in network.buffers():
        broadcast(buffer)


def memory_format(*, channels_last: bool) -> torch.memory_format:
    """Return the memory format of images and weights; convolutions are fastest channels last."""
    return torch.channels_last if channels_last else torch.contiguous_format
