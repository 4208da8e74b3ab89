"""Load batches of augmented views for training.

``batch_plan.py`` determines the order of an indexed source. A stream is read in parts and shuffled
within blocks of each part: its batches depend on the number of processes and workers, and its
position is saved in the checkpoint.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from pcd_hub.data.batch_plan import BatchPlan, StepSampler
from pcd_hub.data.decoding import (
    MAX_TRIED,
    BrokenImageError,
    as_rgb,
    indices_to_try,
    is_jpeg,
    shrink_jpeg,
    too_many_broken,
    upright_jpeg_size,
)
from pcd_hub.data.multiband.image import BandImage, decoded
from pcd_hub.data.shared_memory import fit_workers
from pcd_hub.data.sources.protocols import EncodedImage, ImageSource, ImageStream
from pcd_hub.data.views import (
    PairParameters,
    TwoViewTransform,
    concatenate_views,
    crops_of,
    flips_of,
)
from pcd_hub.data.workers import load_batches
from pcd_hub.errors import DataError
from pcd_hub.image_size import height_width


@dataclass(kw_only=True)
class Batch:
    """The views of one forward pass of one process."""

    views: UInt8[Tensor, "b 2 bands height width"]
    indices: Int64[Tensor, " b"]
    """Index of each image in its source."""
    epochs: Int64[Tensor, " b"]
    """Epoch for which the views of each image were drawn."""
    crops: Float[Tensor, "b 2 4"]
    """Left, top, right, bottom of each view's crop, as shares of the image's width and height."""
    flips: Bool[Tensor, "b 2 2"]
    """Whether each view is mirrored horizontally and vertically."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of unreadable images; the next readable image replaces each of them."""
    stream_state: tuple[int, dict[str, Any]] | None = None
    """For streams: (worker, state that continues after this batch)."""

    def pin_memory(self) -> "Batch":
        """Move the views to page-locked memory; the DataLoader calls this."""
        self.views = self.views.pin_memory()
        return self


def training_batches(
    source: ImageSource | ImageStream,
    views: TwoViewTransform,
    plan: BatchPlan,
    *,
    num_workers: int,
    shuffle_buffer: int = 1000,
    stream_states: dict[int, dict[str, Any]] | None = None,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> Iterator[Batch]:
    """Yield the batches of the whole run: ``accumulation_steps`` per step, from ``start_step`` on.

    Args:
        source: Source of the images.
        views: Transform of each image to two views.
        plan: Division of the global batch.
        num_workers: Number of processes that prepare batches; 0 for none. The batches of an indexed
            source do not depend on it; the order of a stream does.
        shuffle_buffer: Number of encoded images of a stream that each worker shuffles at once; 1
            keeps the stored order.
        stream_states: The last ``Batch.stream_state`` of each worker, to resume a stream.
        pin_memory: Copy batches into page-locked memory, for CUDA.
        multiprocessing_context: "fork", "spawn" or "forkserver"; Python's default if not given.

    Raises:
        DataError: If there are fewer images than one global batch, ``shuffle_buffer`` is less than
            1, or a stream's number of workers changes or does not fit into shared memory.
    """
    is_indexed = isinstance(source, ImageSource)
    requested = num_workers if is_indexed else min(num_workers, source.num_parts)
    workers = fit_workers(
        requested,
        prefetch=4,
        batch_bytes=2
        * views.num_bands
        * math.prod(height_width(views.image_size))
        * plan.batch_size,
        batches_held=3 * plan.accumulation_steps,
    )
    if isinstance(source, ImageSource):
        dataset = _IndexedViews(source, views)
        options: dict[str, Any] = {
            "batch_sampler": step_keys(StepSampler(len(source), plan), plan),
            "collate_fn": _collate,
        }
    else:
        _check_stream_workers(workers.processes, requested)
        blocks = _ShuffledBlocks(
            source,
            plan,
            states=dict(stream_states or {}),
            num_workers=max(1, workers.processes),
            length=shuffle_buffer,
        )
        dataset = _StreamViews(blocks, views, plan)
        options = {"batch_size": None}
    if workers.processes:
        options["multiprocessing_context"] = multiprocessing_context
    # The default generator, whose state a resumed run restores, must not change.
    options["generator"] = torch.Generator().manual_seed(plan.seed)
    batches = load_batches(dataset, workers=workers, pin_memory=pin_memory, **options)
    return (batch for batch in batches if batch is not None)


def _check_stream_workers(fitting: int, requested: int) -> None:
    """Check that all workers fit into shared memory: fewer would change the order of a stream."""
    if fitting != requested:
        raise DataError(
            f"the shared memory has room for {fitting} of {requested} processes that read the "
            "stream; increase it (docker run --shm-size 32g), or start a new run with "
            f"--data.num-workers {fitting}"
        )


@dataclass(frozen=True)
class DecodeForViews:
    """Draw the view parameters of an opened image, and decode it no larger than the views need."""

    views: TwoViewTransform
    epoch: int
    index: int

    def __call__(self, opened: Any) -> tuple[Image.Image | BandImage, PairParameters]:
        if not is_jpeg(opened):
            image = decoded(opened)
            return image, self.views.draw(image.size, epoch=self.epoch, index=self.index)
        parameters = self.views.draw(upright_jpeg_size(opened), epoch=self.epoch, index=self.index)
        shrink_jpeg(opened, parameters.max_shrink)
        return as_rgb(opened), parameters


def step_keys(sampler: StepSampler, plan: BatchPlan) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the (step, epoch, index) of the images of each forward pass."""
    for number, samples in enumerate(sampler, start=plan.start_step * plan.accumulation_steps):
        yield [(number // plan.accumulation_steps, epoch, index) for epoch, index in samples]


class _IndexedViews(Dataset[Batch]):
    def __init__(self, source: ImageSource, views: TwoViewTransform) -> None:
        self._source = source
        self._views = views

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        step, epoch, first_index = key
        views = self._views.at(step)
        broken: list[tuple[str, str]] = []
        for index in indices_to_try(first_index, len(self._source)):
            try:
                decoded = self._source.read(index, DecodeForViews(views, epoch, index))
            except BrokenImageError as error:
                broken.append((error.name, error.reason))
                continue
            pair = views.render(*decoded)
            parameters = decoded[1]
            return Batch(
                views=pair[None],
                indices=torch.tensor([index]),
                epochs=torch.tensor([epoch]),
                crops=crops_of([parameters]),
                flips=flips_of([parameters]),
                broken=broken,
            )
        raise too_many_broken(broken)


def _collate(samples: list[Batch]) -> Batch:
    return Batch(
        views=concatenate_views([sample.views for sample in samples]),
        indices=torch.cat([sample.indices for sample in samples]),
        epochs=torch.cat([sample.epochs for sample in samples]),
        crops=torch.cat([sample.crops for sample in samples]),
        flips=torch.cat([sample.flips for sample in samples]),
        broken=[image for sample in samples for image in sample.broken],
    )


class _StreamViews(IterableDataset[Batch | None]):
    """Batches of a stream: worker w of W yields the batches w, w + W, ... of this process.

    The DataLoader always starts with worker 0. If a resumed run continues with worker n, the
    workers before it yield None first.
    """

    def __init__(self, blocks: "_ShuffledBlocks", views: TwoViewTransform, plan: BatchPlan) -> None:
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
                yield self._batch(rows, worker, self._views.at(number // plan.accumulation_steps))

    def _batch(self, rows: Iterator["_StreamRow"], worker: int, views: TwoViewTransform) -> Batch:
        decoded_rows: list[_StreamRow] = []
        pairs: list[Tensor] = []
        parameters: list[PairParameters] = []
        broken: list[tuple[str, str]] = []
        in_a_row = 0
        while len(pairs) < self._plan.batch_size:
            row = next(rows)
            try:
                decoded = row.image(DecodeForViews(views, row.epoch, row.number))
            except BrokenImageError as error:
                broken.append((f"{error.name} (image {row.number} of the run)", error.reason))
                in_a_row += 1
                if in_a_row == MAX_TRIED:
                    raise too_many_broken(broken[-in_a_row:]) from error
                continue
            in_a_row = 0
            decoded_rows.append(row)
            pairs.append(views.render(*decoded))
            parameters.append(decoded[1])
        return Batch(
            views=concatenate_views([pair[None] for pair in pairs]),
            indices=torch.tensor([row.number for row in decoded_rows]),
            epochs=torch.tensor([row.epoch for row in decoded_rows]),
            crops=crops_of(parameters),
            flips=flips_of(parameters),
            broken=broken,
            stream_state=(worker, decoded_rows[-1].state),
        )


class _ShuffledBlocks:
    """The endless rows of one worker's part of a stream, shuffled within blocks of ``length``.

    A generator of (seed, reader, epoch, block) permutes each block, so the position in the stream
    is the start of the block and the number of its rows that are done. A checkpoint contains no
    image, and a resumed run reads at most one block again.
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
            raise DataError(f"--data.shuffle-buffer {length}: expected an integer >= 1")
        first_batch = plan.start_step * plan.accumulation_steps
        if first_batch and len(states) != min(num_workers, first_batch):
            raise DataError(
                f"{num_workers} workers per process: expected {len(states)}, as before; resume "
                f"with --data.num-workers {len(states)} and the same number of processes"
            )
        self.num_workers = num_workers
        self._stream = stream
        self._plan = plan
        self._states = states
        self._length = length

    def rows(self, worker: int) -> Iterator["_StreamRow"]:
        """Yield rows from this worker's state on, epoch after epoch."""
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
                    f"{self._stream.fingerprint()}: part {reader} of {num_readers} has no image; "
                    "reduce the number of processes or --data.num-workers"
                )
            state = {**state, "epoch": state["epoch"] + 1, "inner": None}

    def _blocks(
        self, inner: dict[str, Any] | None
    ) -> Iterator[list[tuple[EncodedImage, dict[str, Any]]]]:
        rows = self._stream.read(state=inner)
        while block := list(itertools.islice(rows, self._length)):
            yield block


class _StreamRow(NamedTuple):
    image: EncodedImage
    epoch: int
    number: int
    state: dict[str, Any]
