"""The random parameters of a batch of views, as arrays for the device.

Each image draws its own as in the loader, by ``TwoViewTransform.draw``.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from pcd_hub.data.resident.images import ImageTable
from pcd_hub.data.resident.resampling import count_taps, window_of
from pcd_hub.data.views import (
    PairParameters,
    TwoViewTransform,
    ViewParameters,
    blur_sigma,
    crops_of,
    flips_of,
)
from pcd_hub.image_size import ImageSize, height_width

JITTER_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class ViewParts:
    """Parameters of some views that are rendered together: three arrays to copy to the device."""

    integers: Int64[np.ndarray, "v 8"]
    """Start, width and height of the image in its buffer; left and top of the window to read;
    whether the view is mirrored horizontally, vertically, and solarized."""
    numbers: Float[np.ndarray, "v 18"]
    """Left, top, right, bottom of the crop in pixels of the image in the buffer; weights of
    :func:`mix` for the four steps of colour jitter; rotation of the hue; standard deviation of the
    blur in pixels of the view."""
    rows: Int64[np.ndarray, " r"]
    """Views whose hue is rotated at the first step of the jitter, at the second ...; then those
    that become gray; then those that are blurred."""
    counts: tuple[int, ...]
    """Numbers of these views."""
    max_sigma: float
    """Largest standard deviation; 0 if no view is blurred."""
    window: tuple[int, int]
    """Height and width of the largest window."""
    taps: tuple[int, int]
    """Most rows and columns of the image that a pixel of a view depends on."""
    size: ImageSize
    """Size of the views."""


@dataclass(frozen=True, kw_only=True)
class DrawnBatch:
    """Everything that is drawn for the views of one batch."""

    keys: list[tuple[int, int]]
    """(epoch, index) of every image."""
    pairs: list[PairParameters]
    broken: list[tuple[str, str]]

    def fields(self) -> dict[str, Any]:
        """Return the fields of the batch except its views, in few objects to send."""
        return {
            "indices": torch.tensor([index for _, index in self.keys]),
            "epochs": torch.tensor([epoch for epoch, _ in self.keys]),
            "crops": crops_of(self.pairs),
            "flips": flips_of(self.pairs),
            "broken": self.broken,
        }


def draw_batch(
    table: ImageTable, views: TwoViewTransform, keys: Sequence[tuple[int, int]]
) -> DrawnBatch:
    """Draw the parameters of a batch; a readable image replaces a broken one.

    Args:
        table: The images.
        views: The distribution of the views.
        keys: (epoch, index) of every image.

    Raises:
        DataError: If all images that are tried are broken.
    """
    drawn = DrawnBatch(keys=[], pairs=[], broken=[])
    for epoch, first_index in keys:
        index, broken = table.readable(first_index)
        width, height = table.full_sizes[index].tolist()
        drawn.keys.append((epoch, index))
        drawn.pairs.append(views.draw((width, height), epoch=epoch, index=index))
        drawn.broken.extend(broken)
    return drawn


def split_views(
    drawn: DrawnBatch, table: ImageTable, size: ImageSize, *, num_views: int
) -> list[ViewParts]:
    """Return the parameters of all first views, then of all second ones, in equal parts.

    Args:
        drawn: The parameters.
        table: The images.
        size: Size of the views.
        num_views: Most views of a part.
    """
    flat = [
        (index, pair.views[number], pair.size)
        for number in range(2)
        for (_, index), pair in zip(drawn.keys, drawn.pairs, strict=True)
    ]
    count = math.ceil(len(flat) / num_views)
    edges = np.linspace(0, len(flat), count + 1).round().astype(int).tolist()
    return [_as_arrays(flat[first:end], table, size) for first, end in itertools.pairwise(edges)]


def _as_arrays(
    flat: list[tuple[int, ViewParameters, tuple[int, int]]], table: ImageTable, size: ImageSize
) -> ViewParts:
    integers, numbers, windows, taps = [], [], [], []
    rows: list[list[int]] = [[] for _ in range(JITTER_STEPS + 2)]
    for row, (index, full_view, (full_width, full_height)) in enumerate(flat):
        width, height = table.sizes[index].tolist()
        view = full_view.scaled(width / full_width, height / full_height)
        corner, window = _window(view, (width, height), size)
        integers.append(
            [
                *(table.starts[index], width, height, *corner),
                *(view.flip, view.vertical_flip, view.solarize),
            ]
        )
        hue = 0.0
        for step, (name, factor) in enumerate(view.jitter):
            if name == "hue":
                rows[step].append(row)
                hue = round(256 * factor) / 256  # in steps, as the loader
        if view.gray:
            rows[JITTER_STEPS].append(row)
        sigma = blur_sigma(view, size) if view.blur_sigma else 0.0
        if sigma:
            rows[JITTER_STEPS + 1].append(row)
        numbers.append([*view.box, *_mixes(view), hue, sigma])
        windows.append(window)
        taps.append(_taps(view, size))
    return ViewParts(
        integers=np.array(integers, np.int64),
        numbers=np.array(numbers, np.float32),
        rows=np.array([*itertools.chain(*rows)], np.int64),
        counts=tuple(map(len, rows)),
        max_sigma=max(sigma for *_, sigma in numbers),
        window=(max(high for high, _ in windows), max(wide for _, wide in windows)),
        taps=(max(high for high, _ in taps), max(wide for _, wide in taps)),
        size=size,
    )


def _window(
    view: ViewParameters, kept: tuple[int, int], size: ImageSize
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (left, top) and (height, width) of the pixels that a view needs."""
    height, width = height_width(size)
    left, top, right, bottom = view.box
    first, end = window_of(left, right, kept[0], width)
    upper, lower = window_of(top, bottom, kept[1], height)
    return (first, upper), (lower - upper, end - first)


def _taps(view: ViewParameters, size: ImageSize) -> tuple[int, int]:
    height, width = height_width(size)
    left, top, right, bottom = view.box
    return count_taps(top, bottom, height), count_taps(left, right, width)


def _mixes(view: ViewParameters) -> Iterator[float]:
    """Yield the weights own, gray and mean of every step of the jitter."""
    for name, factor in view.jitter or [("", 1.0)] * JITTER_STEPS:
        match name:
            case "brightness":
                yield from (factor, 0.0, 0.0)
            case "contrast":
                yield from (factor, 0.0, 1 - factor)
            case "saturation":
                yield from (factor, 1 - factor, 0.0)
            case _:
                yield from (1.0, 0.0, 0.0)
