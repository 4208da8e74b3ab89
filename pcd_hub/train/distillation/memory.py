"""Warn before the first step of a batch that probably does not fit into the host's memory.

A GPU reports that its memory is exhausted; on a CPU the system kills the process without a word.
"""

import logging
import math

import torch

from pcd_hub.data.resident.memory import free_bytes
from pcd_hub.image_size import height_width
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.own_images.architectures import bytes_per_pixel
from pcd_hub.train.own_images.rule import bytes_of_views

log = logging.getLogger("pcd_hub")


def warn_of_large_batch(
    config: DistillConfig, *, images: int, device: torch.device, precision: str
) -> None:
    """Log a warning if the student's activations are larger than the free memory of the host.

    Args:
        config: The configuration.
        images: Images in one forward pass, each in two views.
        device: Where the run trains; nothing is estimated for a GPU.
        precision: Its mixed precision: "no", "bf16" or "fp16".
    """
    free = free_bytes(device) if device.type == "cpu" else None
    per_pixel = bytes_per_pixel(config.student.arch) if free is not None else None
    if free is None or per_pixel is None:
        return
    pixels = math.prod(height_width(config.data.image_size))
    need = images * bytes_of_views(pixels, per_pixel, precision=precision)
    if need > free:
        log.warning(
            "a batch of %d images needs about %.1f GB of memory, but %.1f GB are free; lower "
            "--optim.global-batch-size or --data.image-size, or raise --optim.accumulation-steps, "
            "which keeps the batch",
            *(images, need / 1e9, free / 1e9),
        )
