"""Batches for training: which images, in which order, at which step, on which process.

The order of an indexed source is a pure function of (seed, step), so a resumed run needs no sampler
state, and the images of one global batch are the same however many processes share them. A stream
is read in parts, shuffled within blocks of each part: what a batch holds depends on the number of
processes and workers, and its position is in the checkpoint.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from pcd_hub.data.shared_memory import fit_workers
from pcd_hub.data.sources import (
    BrokenImageError,
    Encoded,
    ImageSource,
    ImageStream,
    as_rgb,
    is_jpeg,
    shrink_jpeg,
    upright_jpeg_size,
)
from pcd_hub.data.views import DrawnViews, TwoViews, stacked
from pcd_hub.data.workers import load_batches
from pcd_hub.errors import DataError

_MOST_NEIGHBOURS = 32


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How one global batch is shared between processes and accumulation steps.

    ``global_batch_size = world_size * accumulation_steps * batch_size``.
    """

    global_batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulation_steps: int = 1
    seed: int = 0
    start_step: int = 0
    """First optimizer step to prepare, for a resumed run."""
    total_steps: int

    def __post_init__(self) -> None:
        parts = self.world_size * self.accumulation_steps
        if self.global_batch_size < 1 or self.global_batch_size % parts:
            raise DataError(
                f"global batch {self.global_batch_size} does not divide into "
                f"{self.world_size} processes x {self.accumulation_steps} accumulation steps; "
                f"use a multiple of {parts}"
            )

    @property
    def batch_size(self) -> int:
        """Images in one forward pass of one process."""
        return self.global_batch_size // (self.world_size * self.accumulation_steps)


@dataclass(kw_only=True)
class Batch:
    """What one process sees in one forward pass."""

    views: UInt8[Tensor, "b 2 3 size size"]
    indices: Int64[Tensor, " b"]
    """Number of each image in its source."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of images that could not be read; the next readable one stands in for each."""
    stream_state: tuple[int, dict[str, Any]] | None = None
    """For streams: (worker, the state that continues after this batch)."""

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader's pinning thread."""
        self.views = self.views.pin_memory()
        return self


def training_batches(
    source: ImageSource | ImageStream,
    views: TwoViews,
    plan: BatchPlan,
    *,
    num_workers: int,
    shuffle_buffer: int = 1000,
    stream_states: dict[int, dict[str, Any]] | None = None,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> Iterator[Batch]:
    """The batches of the whole run: ``accumulation_steps`` a step, from ``start_step`` on.

    Args:
        source: Where the images are.
        views: What to make of each image.
        plan: How the global batch is shared.
        num_workers: Processes that prepare batches; 0 for none. It changes no pixel of an indexed
            source. Of a stream it decides the order.
        shuffle_buffer: Images of a stream, still encoded, that each worker shuffles at once; 1 is
            the stored order.
        stream_states: The last ``Batch.stream_state`` of each worker, to resume a stream.
        pin_memory: Page-locked batches, for CUDA.
        multiprocessing_context: "fork", "spawn" or "forkserver"; Python's default if not given.

    Raises:
        DataError: If the source holds fewer images than one global batch, nothing is shuffled at
            once, a stream is resumed with another number of workers, or the shared memory has no
            room for those that read it.
    """
    batch_bytes = 2 * 3 * views.image_size**2 * plan.batch_size
    wanted = num_workers if isinstance(source, ImageSource) else min(num_workers, source.num_parts)
    workers = fit_workers(
        wanted,
        prefetch=4,
        batch_bytes=batch_bytes,
        batches_held=3 * plan.accumulation_steps,
    )
    if isinstance(source, ImageSource):
        dataset = _IndexedViews(source, views)
        how: dict[str, Any] = {
            "batch_sampler": StepSampler(len(source), plan),
            "collate_fn": _collate,
        }
    else:
        if workers.processes != wanted:  # of a stream their number decides the order
            raise DataError(
                f"the shared memory has room for {workers.processes} of the {wanted} processes "
                "that read the stream; make it larger (docker run --shm-size 32g), or ask for "
                f"--data.num-workers {workers.processes}, at a resume with a larger one only"
            )
        blocks = _ShuffledBlocks(
            source,
            plan,
            states=dict(stream_states or {}),
            num_workers=max(1, workers.processes),
            length=shuffle_buffer,
        )
        dataset = _StreamViews(blocks, views, plan)
        how = {"batch_size": None, "collate_fn": _unchanged}
    if workers.processes:
        how["multiprocessing_context"] = multiprocessing_context
    # With a generator of its own the loader draws nothing from torch's, whose state a resumed run
    # restores.
    how["generator"] = torch.Generator().manual_seed(plan.seed)
    batches = load_batches(dataset, workers=workers, pin_memory=pin_memory, **how)
    return (batch for batch in batches if batch is not None)


def _unchanged(batch: Batch | None) -> Batch | None:
    return batch


class StepSampler(Sampler[list[tuple[int, int]]]):
    """(epoch, index) pairs of each forward pass of this process.

    Every epoch is a fresh permutation, cut into whole global batches; the remainder is dropped.
    Process r takes the r-th contiguous part, so that gathering the parts in rank order restores the
    global batch.
    """

    def __init__(self, num_images: int, plan: BatchPlan) -> None:
        if num_images < plan.global_batch_size:
            raise DataError(
                f"{num_images} images are fewer than one global batch of {plan.global_batch_size}; "
                "use a smaller --optim.global-batch-size or more images"
            )
        self._num_images = num_images
        self._plan = plan
        self.steps_per_epoch = num_images // plan.global_batch_size

    def __len__(self) -> int:
        return (self._plan.total_steps - self._plan.start_step) * self._plan.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan = self._plan
        order, order_epoch = np.empty(0, np.int64), -1
        for step in range(plan.start_step, plan.total_steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order = np.random.default_rng((plan.seed, epoch)).permutation(self._num_images)
                order_epoch = epoch
            global_batch = order[number * plan.global_batch_size :][: plan.global_batch_size]
            parts = global_batch.reshape(plan.accumulation_steps, plan.world_size, plan.batch_size)
            for part in parts[:, plan.rank]:
                yield [(epoch, int(index)) for index in part]


@dataclass(frozen=True)
class DrawnFromFile:
    """Draws the views of an opened image, and decodes it no larger than they need."""

    views: TwoViews
    epoch: int
    index: int

    def __call__(self, opened: Image.Image) -> tuple[Image.Image, DrawnViews]:
        if not is_jpeg(opened):
            image = as_rgb(opened)
            return image, self.views.draw(image.size, epoch=self.epoch, index=self.index)
        drawn = self.views.draw(upright_jpeg_size(opened), epoch=self.epoch, index=self.index)
        shrink_jpeg(opened, drawn.largest_shrink)
        return as_rgb(opened), drawn


class _IndexedViews(Dataset[Batch]):
    def __init__(self, source: ImageSource, views: TwoViews) -> None:
        self._source = source
        self._views = views

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, wanted = key
        broken: list[tuple[str, str]] = []
        for offset in range(_MOST_NEIGHBOURS):
            index = (wanted + offset) % len(self._source)
            try:
                drawn = self._source.read(index, DrawnFromFile(self._views, epoch, index))
            except BrokenImageError as error:
                broken.append((error.name, error.reason))
                continue
            pair = self._views.render(*drawn)
            return Batch(views=pair[None], indices=torch.tensor([index]), broken=broken)
        raise _nothing_but_broken(broken)


def _nothing_but_broken(broken: list[tuple[str, str]]) -> DataError:
    name, reason = broken[0]
    return DataError(f"{len(broken)} images in a row cannot be read, from {name} ({reason})")


def _collate(samples: list[Batch]) -> Batch:
    return Batch(
        views=stacked([sample.views for sample in samples]),
        indices=torch.cat([sample.indices for sample in samples]),
        broken=[name for sample in samples for name in sample.broken],
    )


class _StreamViews(IterableDataset[Batch | None]):
    """Whole batches from a stream: worker w of W makes batches w, w + W, ... of this process.

    The DataLoader always asks worker 0 first. When a resumed run must go on with worker n, the
    workers before it answer None once.
    """

    def __init__(self, blocks: "_ShuffledBlocks", views: TwoViews, plan: BatchPlan) -> None:
        self._blocks = blocks
        self._views = views
        self._plan = plan

    def __iter__(self) -> Iterator[Batch | None]:
        plan, num_workers = self._plan, self._blocks.num_workers
        info = get_worker_info()
        worker = info.id if info else 0
        first = plan.start_step * plan.accumulation_steps
        rows = self._blocks.rows(worker)
        if worker < first % num_workers:
            yield None
        for number in range(first, plan.total_steps * plan.accumulation_steps):
            if number % num_workers == worker:
                yield self._batch(rows, worker)

    def _batch(self, rows: Iterator["_StreamRow"], worker: int) -> Batch:
        taken: list[_StreamRow] = []
        pairs: list[Tensor] = []
        broken: list[tuple[str, str]] = []
        in_a_row = 0
        while len(taken) < self._plan.batch_size:
            row = next(rows)
            try:
                drawn = row.image(DrawnFromFile(self._views, row.epoch, row.number))
            except BrokenImageError as error:
                broken.append((f"{error.name} (image {row.number} of the run)", error.reason))
                in_a_row += 1
                if in_a_row == _MOST_NEIGHBOURS:
                    raise _nothing_but_broken(broken[-in_a_row:]) from error
                continue
            in_a_row = 0
            taken.append(row)
            pairs.append(self._views.render(*drawn))
        return Batch(
            views=stacked([pair[None] for pair in pairs]),
            indices=torch.tensor([row.number for row in taken]),
            broken=broken,
            stream_state=(worker, taken[-1].state),
        )


class _ShuffledBlocks:
    """The rows of a stream, endless, as one worker sees them: shuffled within blocks of ``length``.

    A block is permuted by a generator of (seed, reader, epoch, block), so the position in a stream
    is where the block starts and how many of its rows are done: no image is in a checkpoint, and a
    resumed run reads at most one block again.
    """

    def __init__(
        self,
        stream: ImageStream,
        plan: BatchPlan,
        *,
        states: dict[int, dict[str, Any]],
        num_workers: int,
        length: int,
    ) -> None:
        if length < 1:
            raise DataError(f"--data.shuffle-buffer {length} holds no image; it must be at least 1")
        first_batch = plan.start_step * plan.accumulation_steps
        if first_batch and len(states) != min(num_workers, first_batch):
            raise DataError(
                f"the stream was read by {len(states)} workers, now there are {num_workers}; "
                f"resume with --data.num-workers {len(states)} and as many processes as before"
            )
        self.num_workers = num_workers
        self._stream = stream
        self._plan = plan
        self._states = states
        self._length = length

    def rows(self, worker: int) -> Iterator["_StreamRow"]:
        """From this worker's state on, epoch after epoch."""
        state = self._states.get(worker, {"epoch": 0, "count": 0, "inner": None, "done": 0})
        num_readers = self._plan.world_size * self.num_workers
        reader = self._plan.rank * self.num_workers + worker
        while True:
            before = state["count"]
            for block in self._blocks(state["inner"]):
                seed = (self._plan.seed, reader, state["epoch"], state["count"])
                order = np.random.default_rng(seed).permutation(len(block)).tolist()
                for done, place in enumerate(order[state["done"] :], start=state["done"] + 1):
                    yield _StreamRow(
                        block[place][0],
                        state["epoch"],
                        (state["count"] + place) * num_readers + reader,
                        {**state, "done": done},
                    )
                after = block[-1][1]
                state = {**state, "count": state["count"] + len(block), "inner": after, "done": 0}
            if state["count"] == before and state["inner"] is None:
                raise DataError(
                    f"{self._stream.fingerprint()}: reader {reader} of {num_readers} finds no image"
                )
            state = {**state, "epoch": state["epoch"] + 1, "inner": None}

    def _blocks(
        self, inner: dict[str, Any] | None
    ) -> Iterator[list[tuple[Encoded, dict[str, Any]]]]:
        rows = self._stream.read(state=inner)
        while block := list(itertools.islice(rows, self._length)):
            yield block


class _StreamRow(NamedTuple):
    image: Encoded
    epoch: int
    number: int
    state: dict[str, Any]
