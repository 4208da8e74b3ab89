"""COCO average precision, computed by pycocotools without its printed output."""

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from pycocotools import mask as mask_codes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

STATISTICS = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
"""Metrics in COCOeval's order; -1 where there is no object, e.g. of a size that does not occur."""


def coco_scores(
    truth: Mapping[str, Any],
    predictions: Iterable[Mapping[str, Any]],
    kind: Literal["bbox", "segm"],
) -> tuple[dict[str, float], dict[int, float]]:
    """Score predictions on every image of ``truth``, including those without objects.

    Args:
        truth: Annotations in COCO's JSON format. As in COCO, matches with crowds are ignored.
        predictions: COCO results: image_id, category_id, score, bbox and, for ``segm``, a
            compressed run-length mask.
        kind: Measure overlaps of boxes or of masks.

    Returns:
        COCO's twelve statistics in [0, 1], and the AP of each category that occurs.
    """
    # Number from 1, because COCOeval treats a match with id 0 as no match.
    objects = [{**entry, "id": n} for n, entry in enumerate(truth["annotations"], start=1)]
    results = [_result(entry, n, kind) for n, entry in enumerate(predictions, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(truth, objects), _indexed(truth, results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = {name: float(value) for name, value in zip(STATISTICS, evaluation.stats, strict=True)}
    return scores, _by_category(evaluation)


def _result(entry: Mapping[str, Any], number: int, kind: str) -> dict[str, Any]:
    """Complete a prediction as COCO.loadRes does, which fails on an empty list.

    The area, that of the mask if masks are scored, determines the size class of a false positive.
    """
    result = {**entry, "id": number, "iscrowd": 0}
    if kind == "bbox":
        return result | {"area": entry["bbox"][2] * entry["bbox"][3]}
    return result | {"area": float(mask_codes.area(entry["segmentation"]))}


def _indexed(truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco: Any = COCO()
    coco.dataset = {
        "info": {},
        "images": truth["images"],
        "categories": truth["categories"],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _by_category(evaluation: COCOeval) -> dict[int, float]:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # all sizes, 100 detections
    found = {}
    for number, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, number]
        if (values > -1).any():
            found[int(category)] = float(np.mean(values[values > -1]))
    return found
