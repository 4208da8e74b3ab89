"""Render views of resident images in batches on their device."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pcd_hub.data.resident.colours import (
    make_gray,
    mix,
    rotate_hue,
    round_to_8_bits,
    solarize,
)
from pcd_hub.data.resident.drawing import JITTER_STEPS, ViewParts
from pcd_hub.data.resident.images import ResidentImages
from pcd_hub.data.resident.resampling import (
    apply_weights,
    blur_weights,
    crop_weights,
    gather_windows,
)
from pcd_hub.image_size import height_width


@torch.no_grad()
def copy_windows(images: ResidentImages, parts: ViewParts) -> UInt8[Tensor, "v rows columns bands"]:
    """Copy the part of its image that each view needs, in the memory that holds the images."""
    integers = torch.from_numpy(parts.integers).to(images.device, non_blocking=True)
    starts, sizes, corners, _ = integers.split([1, 2, 2, 3], dim=1)
    return gather_windows(
        images.pixels,
        starts[:, 0],
        sizes,
        corners,
        window=parts.window,
        num_bands=images.num_bands,
    )


@torch.no_grad()
def render_views(
    windows: UInt8[Tensor, "v rows columns bands"],
    parts: ViewParts,
    colours: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
) -> UInt8[Tensor, "v bands height width"]:
    """Render views as ``render_view`` of the loader does, up to interpolation and rounding.

    Args:
        windows: What :func:`copy_windows` returns, on the device that renders.
        parts: The parameters of the views.
        colours: Places of red, green and blue among the bands; empty if there are none.
        dtype: Type of the values between two steps; float16 is twice as fast on GPUs.
    """
    p = _Parameters.on_device(parts, windows.device, dtype)
    views = _crop(windows, p, parts, dtype)
    *by_step, to_gray, blurred = p.rows.split(list(parts.counts))
    for rows, weights in zip(by_step, p.mixes.unbind(1), strict=True):
        views = mix(views, weights, colours)
        if len(rows):
            rotate_hue(views, rows, p.hues[rows], colours)
    if len(to_gray):
        make_gray(views, to_gray, colours)
    if len(blurred):
        views[blurred] = _blur(views[blurred], p.sigmas[blurred], parts.max_sigma)
    return solarize(views, p.solarized > 0).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class _Parameters:
    """Parameters of the views on the device."""

    sizes: Int64[Tensor, "v 2"]
    corners: Int64[Tensor, "v 2"]
    flips: Int64[Tensor, "v 2"]
    solarized: Int64[Tensor, " v"]
    boxes: Float[Tensor, "v 4"]
    mixes: Float[Tensor, "v 4 3"]
    hues: Float[Tensor, " v"]
    sigmas: Float[Tensor, " v"]
    rows: Int64[Tensor, " r"]

    @classmethod
    def on_device(cls, parts: ViewParts, device: torch.device, dtype: torch.dtype) -> "_Parameters":
        integers, numbers, rows = (
            torch.from_numpy(array).to(device, non_blocking=True)
            for array in (parts.integers, parts.numbers, parts.rows)
        )
        _, sizes, corners, flips, solarized = integers.split([1, 2, 2, 2, 1], dim=1)
        boxes, mixes, hues, sigmas = numbers.split([4, 12, 1, 1], dim=1)
        return cls(
            sizes=sizes,
            corners=corners,
            flips=flips,
            solarized=solarized[:, 0],
            boxes=boxes,
            mixes=mixes.to(dtype).unflatten(1, (JITTER_STEPS, 3)),
            hues=hues[:, 0].to(dtype),
            sigmas=sigmas[:, 0],
            rows=rows,
        )


def _crop(
    windows: UInt8[Tensor, "v rows columns bands"],
    p: _Parameters,
    parts: ViewParts,
    dtype: torch.dtype,
) -> Float[Tensor, "v bands height width"]:
    """Crop, resize and mirror."""
    height, width = height_width(parts.size)
    planes = windows.movedim(-1, 1).to(dtype, memory_format=torch.contiguous_format)
    horizontal, vertical = (
        crop_weights(
            p.boxes[:, side],
            p.boxes[:, side + 2],
            p.corners[:, side],
            p.sizes[:, side],
            p.flips[:, side] > 0,
            length=length,
            window=parts.window[1 - side],
            taps=parts.taps[1 - side],
        ).to(dtype)
        for side, length in ((0, width), (1, height))
    )
    return round_to_8_bits(apply_weights(planes, vertical, horizontal, in_8_bits=True))


def _blur(
    views: Float[Tensor, "v bands height width"], sigmas: Float[Tensor, " v"], max_sigma: float
) -> Float[Tensor, "v bands height width"]:
    vertical, horizontal = (
        blur_weights(sigmas, length=length, max_sigma=max_sigma).to(views.dtype)
        for length in views.shape[2:]
    )
    return round_to_8_bits(apply_weights(views, vertical, horizontal))
