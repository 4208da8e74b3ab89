"""Pascal VOC's average precision of boxes, by the rules of its development kit.

Differences from COCO's: a detection is matched with the object of its class that it overlaps most,
even if that object is already detected; matches with difficult objects are ignored; and the
precision is measured at 11 points of recall (VOC2007) or at all (since VOC2010). M. Everingham et
al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2; VOCdevkit,
VOCevaldet.m.

Boxes are [left, top, width, height] with edges between pixels, so that a converted VOC box has the
development kit's width, xmax - xmin + 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as mask_codes

from pcd_hub.data.labelled.coco import CocoObject, CocoSplit

Points = Literal["11", "all"]

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


class Match(NamedTuple):
    """The object that a detection overlaps most."""

    overlap: float
    """Intersection over union; 0 if its image has no object of its class."""
    image_id: int
    number: int
    """Index of the object in its image."""
    is_ignored: bool


def voc_scores(
    split: CocoSplit, predictions: Iterable[Mapping[str, Any]], *, points: Points
) -> dict[str, float]:
    """Compute AP, AP50 and AP75 in [0, 1], each the mean over the classes that occur.

    Args:
        split: The annotations. Difficult objects and crowds are ignored.
        predictions: COCO results.
        points: Points of recall at which the precision is measured.

    Returns:
        AP50 is the challenge's metric. AP, the mean over overlaps of 0.50, 0.55 ... 0.95, and AP75
        are detectron2's additions, which MoCo reports.
    """
    found: dict[int, list[Mapping[str, Any]]] = {key: [] for key in split.categories}
    for each in predictions:
        found[each["category_id"]].append(each)
    scores: list[list[float]] = []
    for category, results in found.items():
        objects = {
            image.image_id: [each for each in image.objects if each.category_id == category]
            for image in split.images
        }
        count = sum(not _is_ignored(each) for some in objects.values() for each in some)
        if count:
            matches = best_matches(results, objects)
            rights = (outcomes(matches, threshold) for threshold in THRESHOLDS)
            scores.append([average_precision(right, count, points=points) for right in rights])
    means = np.mean(scores, axis=0).tolist() if scores else [0.0] * len(THRESHOLDS)
    return {"AP": float(np.mean(means)), "AP50": means[0], "AP75": means[5]}


def _is_ignored(each: CocoObject) -> bool:
    return each.is_difficult or each.is_crowd


def best_matches(
    results: Sequence[Mapping[str, Any]], objects: Mapping[int, Sequence[CocoObject]]
) -> list[Match]:
    """Match the detections of one class, in descending order of score."""
    matches: list[Match] = []
    for result in sorted(results, key=lambda each: -each["score"]):
        image_id = result["image_id"]
        candidates = objects[image_id]
        if not candidates:
            matches.append(Match(0.0, image_id, 0, is_ignored=False))
            continue
        boxes: Any = np.array([each.box for each in candidates], np.float64)
        box: Any = np.array([result["bbox"]], np.float64)
        overlaps = mask_codes.iou(box, boxes, [0] * len(candidates))[0]
        best = int(np.argmax(overlaps))
        ignored = _is_ignored(candidates[best])
        matches.append(Match(float(overlaps[best]), image_id, best, is_ignored=ignored))
    return matches


def outcomes(matches: Iterable[Match], threshold: float) -> list[bool]:
    """Return, for each detection that is not ignored, True if it is a true positive.

    Only the first detection of an object can be one.
    """
    taken: set[tuple[int, int]] = set()
    right: list[bool] = []
    for match in matches:
        key = match.image_id, match.number
        if match.overlap < threshold:
            right.append(False)
        elif not match.is_ignored:
            right.append(key not in taken)
            taken.add(key)
    return right


def average_precision(right: Sequence[bool], count: int, *, points: Points) -> float:
    """Compute the mean over recalls of the best precision at that recall or a higher one.

    Args:
        right: Outcome of each detection, in descending order of score; True: true positive.
        count: Number of objects.
        points: "11" for recalls of 0, 0.1 ... 1; "all" for the area under the curve.
    """
    hits = np.cumsum(np.asarray(right, np.int64))
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if points == "11":  # integer arithmetic, so that 3 of 10 reach a recall of 0.3
        reached = np.searchsorted(10 * hits, np.arange(11) * count)
        return float(best[reached].mean())
    return float(np.sum(np.diff(hits, prepend=0) * best[:-1]) / count)
