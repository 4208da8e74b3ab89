"""Plan the batches of a training run, and open the images of recipes without labels.

The order and the views of the images are in :mod:`pcd_hub.data.loader`.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import Batch, training_batches
from pcd_hub.data.multiband.names import RGB, colour_places
from pcd_hub.data.multiband.reading import BandReader
from pcd_hub.data.multiband.source import with_bands
from pcd_hub.data.resident.batches import resident_batches
from pcd_hub.data.resident.images import ResidentImages
from pcd_hub.data.sources.open import ImageSource, ImageStream, open_sources
from pcd_hub.data.views import EarlyViews, TwoViewTransform
from pcd_hub.data.workers import default_workers
from pcd_hub.errors import ConfigError
from pcd_hub.image_size import ImageSize, height_width
from pcd_hub.train.configs.distill import DataConfig, OptimConfig, RunConfig
from pcd_hub.train.configs.fields import one_as_text
from pcd_hub.train.networks import memory_format
from pcd_hub.weights.input_bands import InputBands

log = logging.getLogger("pcd_hub")

ConfigT = TypeVar("ConfigT")

_STREAM_EPOCH = 100_000  # images


def plan_batches(
    accelerator: Accelerator,
    *,
    global_batch_size: int,
    total_steps: int,
    seed: int,
    num_images: int | None,
    images: str = "",
    accumulation_steps: int = 1,
) -> BatchPlan:
    """Plan how processes and accumulation steps share each global batch.

    Args:
        accelerator: The run's Accelerator.
        global_batch_size: Images per step, over all processes.
        total_steps: Optimizer steps of the whole run.
        seed: Seed of the order of the images.
        num_images: Images to train on; None for a stream.
        images: Description of the images for the error message: "DIR has 5 images".
        accumulation_steps: Forward passes per step.

    Raises:
        ConfigError: If there are fewer images than one global batch.
        DataError: If the global batch is not divisible by processes and accumulation steps.
    """
    check_batch_size(num_images, global_batch_size, images)
    return BatchPlan(
        global_batch_size=global_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulation_steps=accumulation_steps,
        seed=seed,
        total_steps=total_steps,
    )


def plan_epochs(
    source: ImageSource | ImageStream, optim: OptimConfig, run: RunConfig, accelerator: Accelerator
) -> BatchPlan:
    """Plan the batches of ``--optim.epochs``, or of ``--run.max-steps`` if given.

    Raises:
        ConfigError: If a stream is used without ``--run.max-steps``, or there are too few images.
        DataError: If the global batch is not divisible by processes and accumulation steps.
    """
    if run.max_steps is None and isinstance(source, ImageStream):
        raise ConfigError("the length of a stream is unknown; set --run.max-steps")
    num_images = count_images(source)
    return plan_batches(
        accelerator,
        global_batch_size=optim.global_batch_size,
        total_steps=run.max_steps or optim.epochs * steps_per_epoch(source, optim),
        seed=run.seed,
        num_images=num_images,
        accumulation_steps=optim.accumulation_steps,
    )


def steps_per_epoch(source: ImageSource | ImageStream, optim: OptimConfig) -> int:
    """Count the steps that use every image once, or 100,000 images of a stream."""
    return (count_images(source) or _STREAM_EPOCH) // optim.global_batch_size


def check_batch_size(num_images: int | None, global_batch_size: int, images: str = "") -> None:
    """Raise a ConfigError if there are fewer images than a batch; see :func:`plan_batches`."""
    if num_images is not None and num_images < global_batch_size:
        raise ConfigError(
            f"{images or f'--data.source has {num_images} images to train on'}, fewer than one "
            f"batch of {global_batch_size}; lower --optim.global-batch-size"
        )


def count_images(
    source: ImageSource | ImageStream, held_out: ImageSource | None = None
) -> int | None:
    """Count the images and those held out; None for a stream, whose length is unknown."""
    if not isinstance(source, ImageSource):
        return None
    return len(source) + (0 if held_out is None else len(held_out))


def open_training_source(data: DataConfig, accelerator: Accelerator) -> ImageSource | ImageStream:
    """Open the images; a stream is split by process.

    Raises:
        ConfigError: If no images are configured.
        DataError: If they do not exist.
    """
    if not any(data.source):
        raise ConfigError("no images are given; expected --data.source DIR, a folder of images")
    source = open_sources(
        data.source, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    if data.bands == RGB:
        return source
    low_high = (data.band_range[0], data.band_range[1]) if data.band_range else None
    return with_bands(source, BandReader(data.bands, low_high))


def open_batches(
    source: ImageSource | ImageStream | ResidentImages,
    data: DataConfig,
    device: torch.device,
    plan: BatchPlan,
    stream_states: dict[int, Any],
    *,
    early: EarlyViews | None = None,
) -> Iterator[Batch]:
    """Open this process's batches of two views per image, from ``plan.start_step`` on.

    Args:
        source: The images.
        data: Size and augmentation of the views.
        device: Where they will be used.
        plan: Division of the global batch.
        stream_states: Positions in a stream, by loader process.
        early: Smaller views of the first steps.
    """
    first, second = data.view_policies()
    views = TwoViewTransform(
        image_size=data.image_size,
        first=first,
        second=second,
        seed=view_seed(data, plan.seed),
        early=early,
        view_epochs=data.view_epochs,
    )
    views = replace(views, num_bands=len(data.bands), colours=colour_places(data.bands))
    workers = num_workers(data.num_workers, device)
    if isinstance(source, ResidentImages):
        render_on = None if device.type == "cpu" else device
        return resident_batches(source, views, plan, num_workers=workers, render_on=render_on)
    return training_batches(
        source,
        views,
        plan,
        num_workers=workers,
        shuffle_buffer=data.shuffle_buffer,
        stream_states=stream_states,
        pin_memory=device.type == "cuda",
    )


def view_seed(data: DataConfig, seed: int) -> int:
    """Return the seed of the views: views that repeat are the same for all runs.

    Args:
        data: Settings of the views.
        seed: The run's seed.
    """
    return 0 if data.view_epochs else seed


def num_workers(requested: int | None, device: torch.device) -> int:
    """Return the number of loader processes per training process."""
    return default_workers(device) if requested is None else requested


def resolve_run(config: ConfigT, plan: BatchPlan, device: torch.device) -> ConfigT:
    """Return a recipe's configuration with the actual number of steps and loader processes."""
    groups = cast("Any", config)
    data = replace(groups.data, num_workers=num_workers(groups.data.num_workers, device))
    return replace(groups, data=data, run=replace(groups.run, max_steps=plan.total_steps))


def shard(count: int, process_index: int, num_processes: int) -> range:
    """Return the indices of one process; every index belongs to exactly one process."""
    return range(process_index, count, num_processes)


def describe_data(
    source: ImageSource | ImageStream, data: DataConfig, fingerprint: str
) -> dict[str, Any]:
    """Describe the images for a record."""
    facts = {
        "source": one_as_text(data.source),
        "fingerprint": fingerprint,
        "images": count_images(source),
    }
    if data.bands != RGB:
        facts |= {"bands": list(data.bands), "band_range": list(data.band_range)}
    return facts


def only_scenes(sources: tuple[str, ...]) -> bool:
    """Return True if all images are generated."""
    return all(source.startswith("scenes:") for source in sources)


def pair_views(target: Tensor, views: Literal["same", "cross"]) -> Tensor:
    """Pair each view with the teacher's feature map of the same view, or of the other view."""
    return target.roll(len(target) // 2, 0) if views == "cross" else target


class Normalise:
    """Conversion of batches to float images in [0, 1], and the student's normalisation."""

    def __init__(
        self, bands: InputBands, device: torch.device, *, channels_last: bool = True
    ) -> None:
        self._memory_format = memory_format(channels_last=channels_last)
        self._num_bands = len(bands.names)
        self._mean = torch.tensor(bands.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(bands.std, device=device).view(-1, 1, 1)
        self._device = device

    def images(self, batch: Batch) -> Float[Tensor, "two_b bands height width"]:
        """Return images in [0, 1]: the first view of every image, then every second view."""
        views = batch.views.to(self._device, non_blocking=True).transpose(0, 1).flatten(0, 1)
        return (views / 255).contiguous(memory_format=self._memory_format)

    def example(self, count: int, size: ImageSize) -> Float[Tensor, "count bands height width"]:
        """Return black images in the memory format of a batch."""
        images = torch.zeros(count, self._num_bands, *height_width(size), device=self._device)
        return images.contiguous(memory_format=self._memory_format)

    def __call__(
        self, images: Float[Tensor, "b bands height width"]
    ) -> Float[Tensor, "b bands height width"]:
        return (images - self._mean) / self._std
