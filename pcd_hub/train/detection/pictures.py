"""Truth beside predictions, for the run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from pcd_hub.data.labelled.coco import CocoImage, Segmentation
from pcd_hub.train.detection.batches import decoded_mask, read_image

SHOWN_SCORE = 0.3
"""Less certain predictions are not drawn; the average precision counts them all the same."""

_COLOURS = np.asarray([*colormaps["tab10"].colors, *colormaps["Dark2"].colors])  # pyright: ignore
_MASK_OPACITY = 0.45
_LABEL_PIXELS = 8  # a name stands above its box where there is so much room


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """One object, of the truth or found."""

    name: str
    box: Sequence[float]
    """Left, top, width, height."""
    colour: "np.ndarray[Any, Any]"
    segmentation: Segmentation | None


def save_detections(
    path: Path,
    images: Sequence[CocoImage],
    predictions: Sequence[Mapping[str, Any]],
    categories: Mapping[int, str],
) -> None:
    """A row an image: left what is there, right what was found.

    Args:
        path: Of the PNG.
        images: Held-out pictures.
        predictions: COCO results, of these and any other pictures.
        categories: Names by category id.
    """
    height = sum(3.6 * image.height / image.width + 0.32 for image in images)
    figure = Figure(figsize=(7.4, height), dpi=150, layout="constrained")
    shares = [image.height / image.width for image in images]
    rows = figure.subplots(len(images), 2, squeeze=False, height_ratios=shares)
    for image, (left, right) in zip(images, rows, strict=True):
        pixels = read_image(image)
        truth = _truth(image, categories)
        found = _found(image, predictions, categories)
        _draw(left, image, pixels, truth, f"truth: {len(truth)} objects")
        title = f"found: {len(found)} with a score of {SHOWN_SCORE:.1f} or more"
        _draw(right, image, pixels, found, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _truth(image: CocoImage, categories: Mapping[int, str]) -> list[_Shape]:
    return [
        _Shape(
            name=categories[each.category_id] + (" (crowd)" if each.is_crowd else ""),
            box=each.box,
            colour=_colour(each.category_id, categories),
            segmentation=each.segmentation,
        )
        for each in image.objects
    ]


def _found(
    image: CocoImage, predictions: Sequence[Mapping[str, Any]], categories: Mapping[int, str]
) -> list[_Shape]:
    """The surest last, so that it is drawn over the others."""
    shown = [
        each
        for each in predictions
        if each["image_id"] == image.image_id and each["score"] >= SHOWN_SCORE
    ]
    return [
        _Shape(
            name=f"{categories[each['category_id']]} {each['score']:.2f}",
            box=each["bbox"],
            colour=_colour(each["category_id"], categories),
            segmentation=each.get("segmentation"),
        )
        for each in sorted(shown, key=lambda each: each["score"])
    ]


def _draw(
    axes: Axes,
    image: CocoImage,
    pixels: UInt8[Tensor, "3 height width"],
    shapes: Sequence[_Shape],
    title: str,
) -> None:
    tinted = pixels.permute(1, 2, 0).numpy() / 255
    for shape in shapes:
        if shape.segmentation is not None:
            inside = decoded_mask(shape.segmentation, image).numpy() > 0
            tinted[inside] += _MASK_OPACITY * (shape.colour - tinted[inside])
    axes.imshow(tinted)
    axes.set_title(title, fontsize=7, loc="left", pad=2)
    axes.set_axis_off()
    for shape in shapes:
        left, top, width, height = shape.box
        edge = Rectangle((left, top), width, height, fill=False, edgecolor=shape.colour)
        axes.add_patch(edge)
        axes.text(
            left,
            top,
            shape.name,
            fontsize=4,
            color="white",
            verticalalignment="bottom" if top > _LABEL_PIXELS else "top",
            clip_on=True,
            bbox={"facecolor": shape.colour, "edgecolor": "none", "pad": 0.6},
        )


def _colour(category_id: int, categories: Mapping[int, str]) -> "np.ndarray[Any, Any]":
    return _COLOURS[sorted(categories).index(category_id) % len(_COLOURS)]
