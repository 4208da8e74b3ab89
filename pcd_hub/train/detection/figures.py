"""Figure of a detector's predictions next to the annotations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcd_hub.data.labelled.coco import CocoImage, Segmentation
from pcd_hub.report.detections import DrawnObject, Panel, category_colour, save_detection_panels
from pcd_hub.train.detection.batches import decode_mask, read_image

SHOWN_SCORE = 0.3
"""Predictions with a lower score are not drawn; the average precision counts all of them."""


def save_detections(
    path: Path,
    images: Sequence[CocoImage],
    predictions: Sequence[Mapping[str, Any]],
    categories: Mapping[int, str],
) -> None:
    """Draw a row per image: annotations on the left, predictions on the right.

    Args:
        path: PNG file.
        images: Held-out images.
        predictions: COCO results of these and any other images.
        categories: Names by category id.
    """
    panels = []
    for image in images:
        truth, found = _truth(image, categories), _found(image, predictions, categories)
        panels.append(
            [
                Panel(title=f"truth: {len(truth)} objects", objects=truth),
                Panel(
                    title=f"found: {len(found)} with a score of {SHOWN_SCORE:.1f} or more",
                    objects=found,
                ),
            ]
        )
    arrays = [read_image(image).permute(1, 2, 0).numpy() for image in images]
    save_detection_panels(path, arrays, panels)


def _truth(image: CocoImage, categories: Mapping[int, str]) -> list[DrawnObject]:
    return [
        _object(
            image,
            categories,
            each.category_id,
            suffix=" (crowd)" if each.is_crowd else "",
            box=each.box,
            segmentation=each.segmentation,
        )
        for each in image.objects
    ]


def _found(
    image: CocoImage, predictions: Sequence[Mapping[str, Any]], categories: Mapping[int, str]
) -> list[DrawnObject]:
    """Return the predictions in ascending order of score, so that the best is drawn last."""
    shown = [
        each
        for each in predictions
        if each["image_id"] == image.image_id and each["score"] >= SHOWN_SCORE
    ]
    return [
        _object(
            image,
            categories,
            each["category_id"],
            suffix=f" {each['score']:.2f}",
            box=each["bbox"],
            segmentation=each.get("segmentation"),
        )
        for each in sorted(shown, key=lambda each: each["score"])
    ]


def _object(
    image: CocoImage,
    categories: Mapping[int, str],
    category_id: int,
    *,
    suffix: str,
    box: Sequence[int | float],
    segmentation: Segmentation | None,
) -> DrawnObject:
    return DrawnObject(
        label=f"{categories[category_id]}{suffix}",
        box=box,
        colour=category_colour(sorted(categories).index(category_id)),
        mask=None if segmentation is None else decode_mask(segmentation, image).numpy(),
    )
