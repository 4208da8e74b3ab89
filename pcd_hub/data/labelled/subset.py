"""Draw a part of a labelled set, to train on fewer labels."""

from dataclasses import replace

import numpy as np

from pcd_hub.data.labelled.coco import CocoSplit
from pcd_hub.data.labelled.segmentation_set import SegmentationSet


def draw_rows(count: int, *, share: float, seed: int) -> list[int]:
    """Draw rows without replacement and return them in ascending order.

    At the same seed, those of a smaller share are among those of a larger one.

    Args:
        count: Number of all rows, at least one.
        share: Share to draw, in (0, 1]; at least one row is drawn.
        seed: Seed of the drawing.
    """
    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[: max(1, round(share * count))].tolist())


def segmentation_subset(images: SegmentationSet, *, share: float, seed: int) -> SegmentationSet:
    """Return a drawn share of a segmentation set; all of it if the share is 1."""
    if share == 1:
        return images
    rows = draw_rows(len(images), share=share, seed=seed)
    return images.take(rows, name=f"{images.name}, {100 * share:g} % drawn")


def coco_subset(split: CocoSplit, *, share: float, seed: int) -> CocoSplit:
    """Return a drawn share of the images with objects; the whole split if the share is 1."""
    if share == 1:
        return split
    images = split.with_objects()
    rows = draw_rows(len(images), share=share, seed=seed)
    return replace(split, images=tuple(images[row] for row in rows))
