"""Pictures for the run folder and the card: pixel features as colours, and the training curve."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from pcd_hub.data.labelled.sets import Mask, SegmentationSet
from pcd_hub.evaluate.scene_probe import save_tiles


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


def save_some_overlays(
    path: Path,
    images: SegmentationSet,
    predicted: Mapping[str, Callable[[int, Image.Image], Mask]],
    count: int = 6,
) -> None:
    """Images from all over the set, their labels, and what each model says of them.

    Args:
        path: Of the PNG.
        images: Labelled.
        predicted: By model, the class of every pixel, given a row of the set and its image.
        count: At most so many images.
    """
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int).tolist()
    shown = {row: images.image(row) for row in rows}
    maps = {"labels": [images.mask(row) for row in rows]}
    maps |= {
        name: [mask_of(*each) for each in shown.items()] for name, mask_of in predicted.items()
    }
    save_overlays(path, list(shown.values()), maps, images.classes)


def save_overlays(
    path: Path,
    images: Sequence[Image.Image],
    maps: Mapping[str, Sequence[UInt8[np.ndarray, "_ _"]]],
    classes: Sequence[str],
) -> None:
    """A column an image; a row for the images, then one for each kind of map laid over them.

    Args:
        path: Of the PNG.
        images: RGB.
        maps: By label, the class of every pixel of each image; 255 is left uncoloured.
        classes: Names, for the legend.
    """
    colours = class_colours(len(classes))
    rows: list[tuple[str, list[Any]]] = [("images", [np.asarray(image) for image in images])]
    for label, masks in maps.items():
        laid = [_laid_over(i, m, colours) for i, m in zip(images, masks, strict=True)]
        rows.append((label, laid))
    figure = Figure(
        figsize=(1.9 * len(images) + 0.4, 2 * len(rows) + 0.6), dpi=110, layout="constrained"
    )
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    for (label, pictures), axes in zip(rows, grid, strict=True):
        for axis, picture in zip(axes, pictures, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(label, fontsize=8)
    patches = [
        Patch(color=colour / 255, label=name) for colour, name in zip(colours, classes, strict=True)
    ][:24]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def save_receptive_fields(path: Path, fields: Mapping[str, Float[Tensor, "_ _"]]) -> None:
    """One panel a field, under its label; brighter is stronger, on a logarithmic scale."""
    figure = Figure(figsize=(2.4 * len(fields), 2.9), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    for axes, (label, field) in zip(panels, fields.items(), strict=True):
        strength = (field / field.max()).cpu().numpy()
        axes.imshow(np.log10(np.maximum(strength, 1e-4)), cmap="magma", vmin=-4, vmax=0)
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def class_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """As different as ``count`` colours can be made simply: hues in turn, three brightnesses."""
    hues = np.arange(count) * 0.618034 % 1
    values = np.choose(np.arange(count) % 3, [0.95, 0.65, 0.85])
    saturation = np.choose(np.arange(count) % 2, [0.85, 0.55])
    return (255 * hsv_to_rgb(np.stack([hues, saturation, values], 1))).astype(np.uint8)


def _laid_over(
    image: Image.Image, mask: UInt8[np.ndarray, "h w"], colours: UInt8[np.ndarray, "count 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    known = (mask < len(colours))[..., None]
    painted = colours[np.where(known[..., 0], mask, 0)]
    return np.where(known, 0.35 * grey + 0.65 * painted, grey).astype(np.uint8)


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
