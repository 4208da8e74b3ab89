"""Figures of features: principal components as colours, and receptive fields."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from pcd_hub.report.png import save_figure, save_tiles


def save_pca(
    path: Path,
    images: UInt8[Tensor, "n 3 height width"],
    feature_maps: Mapping[str, Float[Tensor, "n _ _ _"]],
) -> None:
    """Draw a row of images, then a row of colour-coded feature maps per model.

    The first three principal components are the RGB channels. Each model has its own axes: colours
    can be compared within a row, boundaries between rows.
    """
    size = images.shape[2:]
    rows = [images.permute(0, 2, 3, 1).numpy()]
    for maps in feature_maps.values():
        colours = F.interpolate(principal_colours(maps), size=size, mode="nearest")
        rows.append((255 * colours).round().byte().permute(0, 2, 3, 1).numpy())
    save_tiles(path, np.stack(rows))


def principal_colours(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Project feature maps on their first three principal components, each scaled to [0, 1].

    The components are computed over all locations of all images. The lowest and highest percent
    are clipped. A component's sign is chosen such that its largest loading is positive, so that the
    colours are reproducible.
    """
    count, _, height, width = maps.shape
    flat = F.normalize(maps.float(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    centred = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:3]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    components = centred @ (axes * largest.sign()).T
    low, high = (components.quantile(q, dim=0) for q in (0.01, 0.99))
    stretched = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    padded = F.pad(stretched, (0, 3 - stretched.shape[1]))
    return padded.view(count, height, width, 3).permute(0, 3, 1, 2)


def save_fields(path: Path, fields: Sequence[Float[Tensor, "height width"]]) -> None:
    """Draw receptive fields side by side, without labels, on a logarithmic scale."""
    tiles = [colormaps["magma"](_logarithmic(field), bytes=True)[..., :3] for field in fields]
    save_tiles(path, np.stack(tiles)[None])


def _logarithmic(field: Float[Tensor, "height width"]) -> Float[np.ndarray, "height width"]:
    """Return the strengths from 0 (0.01 % of the strongest) to 1."""
    strength = (field / field.max()).cpu().numpy()
    return 1 + np.log10(np.maximum(strength, 1e-4)) / 4


def save_receptive_fields(path: Path, fields: Mapping[str, Float[Tensor, "_ _"]]) -> None:
    """Draw one panel per receptive field, under its label, on a logarithmic scale."""
    figure = Figure(figsize=(2.4 * len(fields), 2.9), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    for axes, (label, field) in zip(panels, fields.items(), strict=True):
        strength = (field / field.max()).cpu().numpy()
        axes.imshow(np.log10(np.maximum(strength, 1e-4)), cmap="magma", vmin=-4, vmax=0)
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=8)
    save_figure(path, figure)
