"""Open the held-out images of a distillation, and the scores on them."""

import hashlib
import logging
from typing import cast

import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor

from pcd_hub.data.sources.open import ImageSource
from pcd_hub.errors import ConfigError
from pcd_hub.image_size import height_width
from pcd_hub.train.batches import num_workers
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.distillation.early_views import early_steps
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.held_out.held_out import HeldOut
from pcd_hub.train.held_out.history import History
from pcd_hub.train.held_out.images import read_crops
from pcd_hub.train.held_out.plateau import EarlyEnd, measure_interval
from pcd_hub.train.held_out.scorer import Scorer
from pcd_hub.train.launch import from_main_process, on_main_process
from pcd_hub.train.networks import memory_format
from pcd_hub.train.optimizers import head_only_steps, warmup_steps

log = logging.getLogger("pcd_hub")


def read_held_out(
    accelerator: Accelerator, config: DistillConfig, source: ImageSource | None
) -> UInt8[Tensor, "n bands height width"] | None:
    """Read the held-out images on the main process; None if there are none.

    Raises:
        ConfigError: If no share is held out, but a plateau on held-out images is to end the run.
        DataError: If fewer than two of them can be read.
    """
    if source is None:
        if config.run.stop_on_plateau and not config.data.held_out:
            raise ConfigError(
                "--run.stop-on-plateau needs held-out images, found --data.held-out 0; "
                "add --data.held-out 0.02"
            )
        if config.run.stop_on_plateau:
            log.warning("--run.stop-on-plateau has no effect without held-out images")
        return None
    size, num_bands = height_width(config.data.image_size), len(config.data.bands)
    workers = num_workers(config.data.num_workers, accelerator.device)
    images = [torch.empty(0, num_bands, *size, dtype=torch.uint8)]  # of the other processes

    def read() -> None:
        images[0] = read_crops(source, size=size, num_bands=num_bands, num_workers=workers)

    on_main_process(accelerator, read)
    return images[0]


def open_held_out(
    d: Distillation, images: UInt8[Tensor, "n bands height width"] | None
) -> HeldOut | None:
    """Prepare the scores on the held-out images; call it on every process."""
    if images is None:
        return None
    config, total_steps = d.config, d.plan.total_steps
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]
    digest, count = cast("tuple[str, int]", from_main_process(d.accelerator, (digest, len(images))))
    interval = measure_interval(total_steps, config.optim.global_batch_size, count)
    return HeldOut(
        accelerator=d.accelerator,
        folder=d.folder,
        scored=History(
            d.accelerator,
            d.folder,
            name="held_out",
            every_steps=config.run.measure_every_steps or interval,
            end=EarlyEnd(total_steps),
        ),
        student=d.student,
        scorer=Scorer(
            accelerator=d.accelerator,
            images=images,
            distiller=d.distiller,
            teacher=d.teacher,
            normalise=d.normalise,
            negatives=d.queue is not None,
            moments=d.moments,
            batch_size=2 * d.plan.batch_size,
            memory_format=memory_format(channels_last=config.speed.channels_last),
        ),
        images=digest,
        num_images=count,
        warmup_steps=max(
            warmup_steps(config.optim, total_steps),
            head_only_steps(config.optim, total_steps),
            early_steps(config.data, total_steps=total_steps),
        ),
        stop_on_plateau=config.run.stop_on_plateau,
        start_name=d.start_label,
    )
