"""Masks of a part of an image, as run-length codes of the whole image."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as mask_codes

from pcd_hub.data.labelled.formats.found import FoundObject


def placed_mask(
    inside: Bool[np.ndarray, "rows columns"], left: int, top: int, size: tuple[int, int]
) -> Any:
    """Encode a mask whose first pixel is at ``left``, ``top`` of an image of ``size``.

    Returns:
        The run-length code of the whole image, or what is wrong with the mask as text.
    """
    rows, columns = inside.shape
    width, height = size
    if left < 0 or top < 0 or left + columns > width or top + rows > height:
        return (
            f"its mask covers columns {left} to {left + columns} and rows {top} to {top + rows}: "
            f"expected at most {width} x {height} pixels"
        )
    canvas = np.zeros((height, width), np.uint8, order="F")
    canvas[top : top + rows, left : left + columns] = inside
    return mask_codes.encode(canvas)


def with_mask(found: FoundObject, code: Any) -> FoundObject | str:
    """Return the object with a mask of the whole image and its box, or what is wrong with it."""
    if not mask_codes.area(code):
        return "its mask is empty"
    segmentation = {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
    return replace(found, box=mask_codes.toBbox(code).tolist(), segmentation=segmentation)
