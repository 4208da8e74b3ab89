"""PNG files: grids of equally sized images, and matplotlib figures."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor


def save_tiles(path: Path, tiles: UInt8[np.ndarray, "rows columns height width 3"]) -> None:
    """Write a grid of images of one size as one PNG."""
    rows, columns, height, width, _ = tiles.shape
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)


def save_views(path: Path, views: UInt8[Tensor, "b 2 bands height width"], count: int = 8) -> None:
    """Write the two views of the first ``count`` images, one view per row.

    Of images with other bands than RGB, the first three are shown as colours, or the first as gray.
    """
    shown = views[:count, :, :3] if views.shape[2] >= 3 else views[:count, :, [0, 0, 0]]
    save_tiles(path, shown.permute(1, 0, 3, 4, 2).cpu().numpy())


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure without the library's version, so that equal figures give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
