"""Pictures for the run folder and the card: pixel features as colours, and the training curve."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from scene_probe import save_tiles


def save_pca(
    path: Path,
    images: UInt8[Tensor, "n 3 height width"],
    pixels: Mapping[str, Float[Tensor, "n _ _ _"]],
) -> None:
    """One row of images, then one per model: its pixels' first three principal components as RGB.

    Each model has its own axes, so that colours compare within a row and borders between rows.
    """
    size = images.shape[2:]
    rows = [images.permute(0, 2, 3, 1).numpy()]
    for maps in pixels.values():
        colours = F.interpolate(principal_colours(maps), size=size, mode="nearest")
        rows.append((255 * colours).round().byte().permute(0, 2, 3, 1).numpy())
    save_tiles(path, np.stack(rows))


def principal_colours(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """The first three principal components over all pixels, each stretched to [0, 1].

    The brightest and darkest percent are clipped; the sign of a component is chosen so that its
    largest loading is positive, or a rerun would swap colours.
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


def save_training_curve(path: Path, metrics: Path) -> None:
    """Loss and learning rate over the steps, from ``metrics.jsonl``."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, [line["loss"] for line in lines], color="#1f5fa8")
    axes.set(xlabel="step", ylabel="loss (logged steps)")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [line["lr"] for line in lines], color="#c0504d", linewidth=0.8)
    rates.set_ylabel("learning rate", color="#c0504d")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
