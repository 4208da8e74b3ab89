"""Batches of views of resident images, with the parameters that the loader would draw.

For a GPU, loader processes draw the parameters and the GPU renders in batches; from images in host
memory, threads copy to it what the views need. On a CPU, threads draw and render by the loader's
own functions, which are faster there.
"""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcd_hub.data.batch_plan import BatchPlan, StepSampler
from pcd_hub.data.loader import Batch, step_keys
from pcd_hub.data.resident.drawing import ViewParts, draw_batch, split_views
from pcd_hub.data.resident.images import ImageTable, ResidentImages
from pcd_hub.data.resident.rendering import copy_windows, render_views
from pcd_hub.data.shared_memory import Workers
from pcd_hub.data.views import TwoViewTransform, concatenate_views
from pcd_hub.data.workers import load_batches
from pcd_hub.image_size import height_width

_DRAWING_PROCESSES = 8
"""Most processes that draw parameters: 5,500 images a second each, on one core of a server CPU."""
_AHEAD = 4
"""Batches that each process or thread prepares ahead."""
_COPYING_THREADS = 4
"""Threads that copy from host memory; each holds the windows of a batch."""
_PIXELS_AT_ONCE = {"cuda": 2**23, "cpu": 2**18}
"""Pixels of the views that are rendered together: on a CPU, what its cache holds."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Keys = list[tuple[int, int, int]]
"""(step, epoch, index) of every image of a batch."""


def resident_batches(
    images: ResidentImages,
    views: TwoViewTransform,
    plan: BatchPlan,
    *,
    num_workers: int,
    render_on: torch.device | None = None,
) -> Iterator[Batch]:
    """Yield the batches of the whole run, as ``training_batches`` does, from ``start_step`` on.

    Args:
        images: The images.
        views: Transform of each image to two views.
        plan: Division of the global batch.
        num_workers: Loader processes, or threads if these render; 0 for none. The batches do not
            depend on it.
        render_on: Device that renders in batches. None: threads render by the loader's functions;
            the images must be in host memory.
    """
    keys = step_keys(StepSampler(len(images), plan), plan)
    if render_on is not None:
        return _rendered_on(render_on, images, views, keys, num_workers=num_workers)
    render = functools.partial(_render_by_loader, images, views)
    return in_threads(render, keys, num_threads=num_workers, ahead=_AHEAD)


class _Prepared(NamedTuple):
    fields: dict[str, Any]
    """Fields of the batch except its views."""
    parts: list[ViewParts]


class _Drawing(Dataset[_Prepared]):
    def __init__(self, table: ImageTable, views: TwoViewTransform, device: str) -> None:
        self._table = table
        self._views = views
        self._pixels_at_once = _PIXELS_AT_ONCE[device]

    def __getitem__(self, keys: Keys) -> _Prepared:
        step = keys[0][0]
        size = self._views.at(step).image_size
        num_views = max(1, self._pixels_at_once // math.prod(height_width(size)))
        drawn = draw_batch(self._table, self._views.at(step), [key[1:] for key in keys])
        return _Prepared(drawn.fields(), split_views(drawn, self._table, size, num_views=num_views))


class _Copied(NamedTuple):
    prepared: _Prepared
    windows: Iterator[Tensor]
    """For each part of the views."""


def _rendered_on(
    device: torch.device,
    images: ResidentImages,
    views: TwoViewTransform,
    keys: Iterator[Keys],
    *,
    num_workers: int,
) -> Iterator[Batch]:
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    prepared = load_batches(
        _Drawing(images.table, views, device.type),
        workers=Workers(min(num_workers, _DRAWING_PROCESSES), _AHEAD),
        batch_size=None,
        sampler=keys,
        generator=torch.Generator(),
    )
    copy = functools.partial(_copy, images, device)
    is_on_host = images.device.type == "cpu"
    copied = in_threads(copy, prepared, num_threads=_COPYING_THREADS * is_on_host, ahead=1)
    for (fields, parts), all_windows in copied:
        rendered = [
            render_views(windows.to(device, non_blocking=True), part, views.colours, dtype=dtype)
            for part, windows in zip(parts, all_windows, strict=True)
        ]
        first, second = torch.cat(rendered).chunk(2)
        yield Batch(views=torch.stack((first, second), dim=1), **fields)


def _copy(images: ResidentImages, device: torch.device, prepared: _Prepared) -> _Copied:
    """Copy the windows of a batch: from host memory now, for a GPU, and otherwise when needed."""
    windows = (copy_windows(images, part) for part in prepared.parts)
    if images.device.type == "cpu" and device.type == "cuda":
        with torch.cuda.device(device):  # a thread begins with the first GPU
            return _Copied(prepared, iter([one.pin_memory() for one in windows]))
    return _Copied(prepared, windows)


def _render_by_loader(images: ResidentImages, views: TwoViewTransform, keys: Keys) -> Batch:
    """Draw and render a batch in host memory."""
    views = views.at(keys[0][0])
    drawn = draw_batch(images.table, views, [key[1:] for key in keys])
    pairs = [
        views.render(images.image(index), pair)
        for (_, index), pair in zip(drawn.keys, drawn.pairs, strict=True)
    ]
    return Batch(views=concatenate_views([pair[None] for pair in pairs]), **drawn.fields())


def in_threads(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    *,
    num_threads: int,
    ahead: int,
) -> Iterator[ResultT]:
    """Yield ``function`` of every item in order, computed ahead by threads.

    Args:
        function: The function.
        items: Its arguments.
        num_threads: Number of threads; 0 to compute when the result is needed.
        ahead: Results that each thread computes ahead.
    """
    if not num_threads:
        yield from map(function, items)
        return
    rest = iter(items)
    pending: collections.deque[Future[ResultT]] = collections.deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="resident") as pool:
        try:
            for item in itertools.islice(rest, num_threads * ahead):
                pending.append(pool.submit(function, item))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
