"""Figures of detections: labelled boxes and masks over the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pcd_hub.report.png import save_figure

Colour = Float[np.ndarray, " 3"]

_COLOURS = np.asarray([*colormaps["tab10"].colors, *colormaps["Dark2"].colors])  # pyright: ignore
_MASK_OPACITY = 0.45
_LABEL_HEIGHT = 8  # pixels that a label needs above its box


@dataclass(frozen=True, kw_only=True)
class DrawnObject:
    """One box with its label, and a mask if there is one."""

    label: str
    box: Sequence[int | float]
    """Left, top, width, height in pixels."""
    colour: Colour
    mask: UInt8[np.ndarray, "height width"] | None = None
    """Nonzero inside the object."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The objects of one panel, under its title."""

    title: str
    objects: Sequence[DrawnObject]


def save_detection_panels(
    path: Path,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    panels: Sequence[Sequence[Panel]],
) -> None:
    """Draw a row per image with one panel each.

    Args:
        path: PNG file.
        images: RGB images.
        panels: The panels of each image, the same number for all.
    """
    shares = [image.shape[0] / image.shape[1] for image in images]
    height = sum(3.6 * share + 0.32 for share in shares)
    figure = Figure(figsize=(7.4, height), dpi=150, layout="constrained")
    grid = figure.subplots(len(images), len(panels[0]), squeeze=False, height_ratios=shares)
    for image, row, axes_row in zip(images, panels, grid, strict=True):
        for panel, axes in zip(row, axes_row, strict=True):
            _draw(axes, image, panel)
    save_figure(path, figure)


def category_colour(index: int) -> Colour:
    """Return the colour of a category by its index."""
    return _COLOURS[index % len(_COLOURS)]


def _draw(axes: Axes, image: UInt8[np.ndarray, "height width 3"], panel: Panel) -> None:
    tinted: Any = image / 255
    for each in panel.objects:
        if each.mask is not None:
            inside = each.mask > 0
            tinted[inside] += _MASK_OPACITY * (each.colour - tinted[inside])
    axes.imshow(tinted)
    axes.set_title(panel.title, fontsize=7, loc="left", pad=2)
    axes.set_axis_off()
    for each in panel.objects:
        left, top, width, height = each.box
        edge = Rectangle((left, top), width, height, fill=False, edgecolor=each.colour)
        axes.add_patch(edge)
        axes.text(
            left,
            top,
            each.label,
            fontsize=4,
            color="white",
            verticalalignment="bottom" if top > _LABEL_HEIGHT else "top",
            clip_on=True,
            bbox={"facecolor": each.colour, "edgecolor": "none", "pad": 0.6},
        )
