"""Records of a cache: the teacher's feature maps of both views of an image.

A record consists of a few pixels of the views, by which other views are recognised, the largest
absolute value of each location (float32), and the channels of each location as shares of it, in 8
or 16 bits.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

_SIDE = 4
"""Rows and columns of the pixels of a view that are kept."""
_MAX_DIFFERENCE = 8.0
"""Largest mean difference of these pixels, of 255. Versions of an image library differ by less."""

Rows = UInt8[np.ndarray, "n bytes"]
Values = Literal["int8", "float16"]
_MOST = {"int8": 127, "float16": 1}
"""Largest value by format."""
_TYPES = {"int8": torch.int8, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class RecordFormat:
    """The format of the records of one cache."""

    channels: int
    height: int
    width: int
    """Shape of a feature map."""
    bands: int = 3
    """Bands of a view."""
    values: Values = "int8"
    """int8 keeps the direction of a vector: the cosine with the original is above 0.999. float16
    keeps small channels beside large ones, too."""

    @property
    def num_bytes(self) -> int:
        """Bytes of a record."""
        num_values = 2 * self.height * self.width * self.channels
        return self._values_at + num_values * _TYPES[self.values].itemsize

    def encode(
        self, maps: Float[Tensor, "two_n c h w"], views: UInt8[Tensor, "n 2 bands rows columns"]
    ) -> Rows:
        """Return one record per image.

        Args:
            maps: Feature maps of all first views, then of all second views.
            views: The views.
        """
        vectors = maps.float().unflatten(0, (2, -1)).transpose(0, 1)
        vectors = vectors.movedim(2, -1).flatten(1, 3)  # n, 2 h w, c
        scales = vectors.abs().amax(2, keepdim=True).clamp_min(1e-30) / _MOST[self.values]
        values = vectors / scales
        values = values.half() if self.values == "float16" else values.round().to(torch.int8)
        parts = (samples(views), scales, values)
        as_bytes = [part.contiguous().flatten(1).cpu().view(torch.uint8) for part in parts]
        return torch.cat(as_bytes, 1).numpy()

    def decode(self, rows: Rows, device: torch.device) -> Float[Tensor, "two_n c h w"]:
        """Return the feature maps of all first views, then of all second views, in float32."""
        records = torch.from_numpy(rows)
        if device.type == "cuda":
            records = records.pin_memory()
        records = records.to(device, non_blocking=True)
        scales = records[:, self._scales_at : self._values_at].contiguous().view(torch.float32)
        values = records[:, self._values_at :].contiguous().view(_TYPES[self.values])
        vectors = values.unflatten(1, (-1, self.channels)).float() * scales[:, :, None]
        maps = vectors.unflatten(1, (2, self.height, self.width)).transpose(0, 1).flatten(0, 1)
        return maps.movedim(-1, 1)

    def shows(
        self, rows: Rows, views: UInt8[Tensor, "n 2 bands rows columns"]
    ) -> Bool[np.ndarray, " n"]:
        """Return which records were made from these views, up to small differences.

        Views on a GPU are not compared: the step would wait for their pixels.
        """
        if views.device.type != "cpu":
            return np.ones(len(rows), bool)
        kept = rows[:, : self._scales_at].astype(np.int16)
        found = samples(views).flatten(1).numpy().astype(np.int16)
        return np.abs(kept - found).mean(1) <= _MAX_DIFFERENCE

    @property
    def _scales_at(self) -> int:
        return 2 * self.bands * _SIDE**2

    @property
    def _values_at(self) -> int:
        return self._scales_at + 4 * 2 * self.height * self.width


def samples(
    views: UInt8[Tensor, "n 2 bands rows columns"],
) -> UInt8[Tensor, "n 2 bands side side"]:
    """Return a few pixels of each view, on a regular grid."""
    rows, columns = (
        torch.arange(_SIDE) * length // _SIDE + length // (2 * _SIDE) for length in views.shape[-2:]
    )
    return views[..., rows[:, None], columns]
