"""Whether the images of a distillation stay decoded in memory, and in which; read them."""

import dataclasses
import logging
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.progress import silent
from pcd_hub.data.resident.memory import estimate_bytes, free_bytes, side_for_views
from pcd_hub.data.resident.reading import read_images
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.data.workers import num_cores
from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.progress import progress
from pcd_hub.train.configs.distill import DistillDataConfig
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.launch import on_main_process

log = logging.getLogger("pcd_hub")

DEVICES = ("cuda", "cpu")
MIN_PASSES = 2
"""Fewest passes over the images for which auto keeps them: the first one decodes them anyway."""
AUTO_SHARE, LARGEST_SHARE = 0.25, 0.9
"""Shares of the free memory that the images may need: for auto, which leaves room for the
networks, and at most."""


def resolve_resident(
    data: DistillDataConfig,
    *,
    source: ImageSource | ImageStream,
    plan: BatchPlan,
    accelerator: Accelerator,
) -> DistillDataConfig:
    """Return the settings with ``auto`` decided and the side derived; call it on every process.

    Args:
        data: The settings.
        source: The images.
        plan: The run's steps.
        accelerator: The run's Accelerator, whose device holds the images.

    Raises:
        ConfigError: If images that are asked to stay cannot.
    """
    if data.resident == "off":
        return dataclasses.replace(data, resident_side=None)
    side = data.resident_side or side_for_views(
        data.image_size, (data.min_crop_area, data.max_crop_area)
    )
    reason = _reason_against(data, source, side, plan=plan, accelerator=accelerator)
    if reason is None:
        return dataclasses.replace(data, resident="on", resident_side=side)
    if data.resident == "on":
        raise ConfigError(f"--data.resident on: {reason}")
    log.info("the images are read from their files in every epoch: %s", reason)
    return dataclasses.replace(data, resident="off", resident_side=None)


def _reason_against(
    data: DistillDataConfig,
    source: ImageSource | ImageStream,
    side: int,
    *,
    plan: BatchPlan,
    accelerator: Accelerator,
) -> str | None:
    """Return why the images cannot stay, or with auto, why they should not; None if they should."""
    device = accelerator.device
    if isinstance(source, ImageStream):
        return "a stream is read in order; expected images that are read by their number"
    if device.type not in DEVICES:
        return f"the device is {device.type}; expected one of {', '.join(DEVICES)}"
    is_auto = data.resident == "auto"
    if is_auto and device.type == "cpu":  # less than 1 % of a step for photographs of 144 px
        return "on a CPU, decoding is a small part of a step, unless the files are large"
    passes = plan.total_steps * plan.global_batch_size / len(source)
    if is_auto and passes < MIN_PASSES:
        return f"the run sees each of them {passes:.1f} times"
    needed = on_main_process(
        accelerator, lambda: estimate_bytes(source, side, num_bands=len(data.bands))
    )
    places, share = ((device,), AUTO_SHARE) if is_auto else (_places(device), LARGEST_SHARE)
    place, free = _place(needed, places, share=share)
    if place is None:
        return (
            f"{len(source):,} images with a short side of {side} px need {_gigabytes(needed)}, "
            f"expected at most {share:.0%} of the {_gigabytes(free)} of memory that are free; "
            "reduce --data.resident-side"
        )
    log.info(
        "%s images stay in the memory of %s, with a short side of at most %d px: about %s",
        *(f"{len(source):,}", place.type.upper(), side, _gigabytes(needed)),
    )
    return None


def _places(device: torch.device) -> tuple[torch.device, ...]:
    """Return the device and the host, whose memories may hold the images."""
    return (device,) if device.type == "cpu" else (device, torch.device("cpu"))


def _place(
    needed: int, places: Sequence[torch.device], *, share: float
) -> tuple[torch.device | None, int]:
    """Return the first place with enough memory for every process, and its free memory."""
    free = 0
    for place in places:
        known = [one for one in gather_object([free_bytes(place)]) if one is not None]
        free = min(known, default=0)
        if not known or needed <= share * free:
            return place, free
    return None, free


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def read_resident(d: Distillation) -> None:
    """Decode the images into memory, if they stay there; call it on every process.

    Every process keeps all images, as those of a global batch are shared differently in each epoch;
    all students of a run share them.
    """
    data = d.config.data
    if data.resident != "on" or d.shared.resident is not None:
        return
    source, side, num_bands = d.source, data.resident_side, len(data.bands)
    assert isinstance(source, ImageSource), "resolved"
    assert side is not None, "resolved"
    places = _places(d.accelerator.device)
    expected = on_main_process(d.accelerator, lambda: estimate_bytes(source, side, num_bands))
    place, _ = _place(expected, places, share=LARGEST_SHARE)
    d.shared.resident = read_images(
        source,
        side=side,
        num_bands=num_bands,
        device=place or places[-1],
        expected_bytes=expected,
        num_workers=num_cores() if data.num_workers else 0,
        progress=progress if d.accelerator.is_main_process else silent,
    )
    if broken := len(d.shared.resident.table.broken):
        log.warning("%d images cannot be decoded; the next readable ones replace them", broken)
