"""Resampling of feature maps that preserves their mean."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Resample(nn.Module):
    """Resample feature maps ``(B, C, h, w)``, preserving the mean of each channel.

    The mean therefore still equals the output of the teacher's vector head
    (``pcd_hub.to_pixel_head``), even if neither size divides the other. Along each axis, a new cell
    is the mean over the area it covers: of the old cells if the new map is coarser, of their linear
    interpolation if it is finer. The result is float32 (float64 for float64 input).

    Args:
        old: Height and width of the input.
        new: Height and width of the output.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        super().__init__()
        for name, before, after in zip(("rows", "columns"), old, new, strict=True):
            self.register_buffer(name, _axis_weights(before, after), persistent=False)

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c new_h new_w"]:
        exact = torch.promote_types(pixels.dtype, torch.float32)
        with torch.autocast(pixels.device.type, enabled=False):  # bfloat16 would change the mean
            rows, columns = self.rows.to(exact), self.columns.to(exact)
            return torch.einsum("yh, bchw, xw -> bcyx", rows, pixels.to(exact), columns)


def resample(maps: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c y x"]:
    """Resample feature maps to another height and width (:class:`Resample`), if they differ."""
    old = (maps.shape[2], maps.shape[3])
    return maps if old == size else _resampler(old, size, maps.device)(maps)


@functools.cache
def _resampler(old: tuple[int, int], new: tuple[int, int], device: torch.device) -> Resample:
    with torch.inference_mode(mode=False):
        return Resample(old, new).to(device)


def _axis_weights(old: int, new: int) -> Float[Tensor, "new old"]:
    """Return the weight of each old cell in each new cell; rows sum to 1, columns to new / old.

    The weights are averaged on a fine grid of old * new points, in which both kinds of cells span
    whole points. Interpolation needs twice as many, as its slope changes at the cells' centres.
    """
    cells = torch.eye(old, dtype=torch.float64)
    if new <= old:
        fine = cells.repeat_interleave(new, dim=0)
    else:
        fine = F.interpolate(cells[None], 2 * old * new, mode="linear")[0].T
    return fine.unflatten(0, (new, -1)).mean(1)
