"""Figures of segmentation: labels and predictions over the images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from pcd_hub.data.labelled.segmentation_set import Mask, SegmentationSet
from pcd_hub.report.png import save_figure


def save_sample_overlays(
    path: Path,
    images: SegmentationSet,
    predicted: Mapping[str, Callable[[int, Image.Image], Mask]],
    count: int = 6,
) -> None:
    """Draw evenly spaced images of a set with their labels and each model's predictions.

    Args:
        path: PNG file.
        images: The labelled set.
        predicted: For each model, a function of a row and its image that predicts the mask.
        count: Maximum number of images.
    """
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int).tolist()
    shown = {row: images.image(row) for row in rows}
    masks = {"labels": [images.mask(row) for row in rows]}
    masks |= {
        name: [predict(*each) for each in shown.items()] for name, predict in predicted.items()
    }
    save_overlays(path, list(shown.values()), masks, images.classes)


def save_overlays(
    path: Path,
    images: Sequence[Image.Image],
    masks: Mapping[str, Sequence[UInt8[np.ndarray, "_ _"]]],
    classes: Sequence[str],
) -> None:
    """Draw a column per image: the image, then each kind of mask over it.

    Args:
        path: PNG file.
        images: RGB images.
        masks: Masks of the images for each row label; 255 is left uncoloured.
        classes: Class names for the legend.
    """
    colours = class_colours(len(classes))
    rows: list[tuple[str, list[Any]]] = [("images", [np.asarray(image) for image in images])]
    for label, each in masks.items():
        overlays = [_overlay(i, m, colours) for i, m in zip(images, each, strict=True)]
        rows.append((label, overlays))
    figure = Figure(
        figsize=(1.9 * len(images) + 0.4, 2 * len(rows) + 0.6), dpi=110, layout="constrained"
    )
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    for (label, tiles), axes in zip(rows, grid, strict=True):
        for axis, tile in zip(axes, tiles, strict=True):
            axis.imshow(tile)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(label, fontsize=8)
    patches = [
        Patch(color=colour / 255, label=name) for colour, name in zip(colours, classes, strict=True)
    ][:24]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    save_figure(path, figure)


def class_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return distinct colours: well-spaced hues in two saturations and three brightnesses."""
    hues = np.arange(count) * 0.618034 % 1
    values = np.choose(np.arange(count) % 3, [0.95, 0.65, 0.85])
    saturation = np.choose(np.arange(count) % 2, [0.85, 0.55])
    return (255 * hsv_to_rgb(np.stack([hues, saturation, values], 1))).astype(np.uint8)


def _overlay(
    image: Image.Image, mask: UInt8[np.ndarray, "h w"], colours: UInt8[np.ndarray, "count 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    labelled = (mask < len(colours))[..., None]
    colour = colours[np.where(labelled[..., 0], mask, 0)]
    return np.where(labelled, 0.35 * grey + 0.65 * colour, grey).astype(np.uint8)
