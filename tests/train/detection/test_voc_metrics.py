from pathlib import Path

import numpy as np
import pytest

from pcd_hub.data.labelled.coco import CocoImage, CocoObject, CocoSplit
from pcd_hub.train.detection.coco_metrics import coco_scores
from pcd_hub.train.detection.voc_metrics import average_precision, voc_scores

A, B, FAR = (10, 10, 40, 40), (100, 100, 50, 50), (10, 120, 40, 40)


def split(*images: list[CocoObject]) -> CocoSplit:
    return CocoSplit(
        file=Path("voc.json"),
        images=tuple(
            CocoImage(image_id=n, path=Path(), width=200, height=200, objects=tuple(objects))
            for n, objects in enumerate(images)
        ),
        categories={1: "cat", 7: "dog"},
    )


def thing(box, *, category: int = 7, difficult: bool = False, crowd: bool = False) -> CocoObject:
    return CocoObject(
        annotation_id=0,
        category_id=category,
        box=box,
        area=box[2] * box[3],
        is_crowd=crowd,
        is_difficult=difficult,
        segmentation=None,
    )


def found(box, score: float, *, image: int = 0, category: int = 7) -> dict:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def ap50(truth: CocoSplit, predictions: list[dict]) -> tuple[float, float]:
    return tuple(voc_scores(truth, predictions, points=each)["AP50"] for each in ("11", "all"))


@pytest.mark.parametrize(
    ("right", "count", "eleven", "area"),
    [
        ([True], 1, 1, 1),
        ([], 1, 0, 0),
        ([False, True], 1, 1 / 2, 1 / 2),
        # Precision 1 up to a recall of 1/2, which six of eleven points are, then 2/3.
        ([True, False, True], 2, (6 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
        ([True] * 3, 10, 4 / 11, 3 / 10),  # 3 of 10 reach 0.3
        ([False, False, True, True], 2, 1 / 2, 1 / 2),  # the better precision comes later
    ],
)
def test_average_precision_on_paper(right, count, eleven, area):
    assert average_precision(right, count, points="11") == pytest.approx(eleven)
    assert average_precision(right, count, points="all") == pytest.approx(area)


def test_what_is_difficult_counts_neither_way():
    hard = split([thing(A), thing(B, difficult=True), thing(FAR, crowd=True)], [])
    assert ap50(hard, [found(A, 0.5)]) == (1, 1)
    assert ap50(hard, [found(B, 0.9), found(B, 0.8), found(FAR, 0.7), found(A, 0.5)]) == (1, 1)
    assert ap50(split([thing(A), thing(B)]), [found(A, 0.5)]) == pytest.approx((6 / 11, 1 / 2))
    # As COCO counts it, the difficult one is an object as any other.
    truth = split([thing(A), thing(B, difficult=True)])
    assert coco_scores(truth.to_coco(), [found(A, 0.5)], "bbox")[0]["AP50"] == pytest.approx(
        51 / 101
    )


def test_the_second_detection_of_an_object_is_wrong_even_next_to_another_object():
    """It belongs to what it overlaps most; COCO would give it to the other object."""
    near = (20, 10, 40, 40)
    predictions = [found(A, 0.9), found((11, 10, 40, 40), 0.8)]
    assert ap50(split([thing(A), thing(near)]), predictions) == pytest.approx((6 / 11, 1 / 2))


def test_an_overlap_of_one_half_is_enough_and_less_is_not():
    truth = split([thing((0, 0, 100, 100))])
    assert ap50(truth, [found((0, 0, 100, 50), 0.5)]) == (1, 1)
    assert ap50(truth, [found((0, 0, 100, 49.99), 0.5)]) == (0, 0)
    scores = voc_scores(truth, [found((0, 0, 100, 76), 0.5)], points="all")
    assert scores == pytest.approx({"AP": 6 / 10, "AP50": 1, "AP75": 1})
    scores = voc_scores(truth, [found((0, 0, 100, 74), 0.5)], points="all")
    assert scores == pytest.approx({"AP": 5 / 10, "AP50": 1, "AP75": 0})


def test_the_mean_is_over_the_classes_that_have_an_object_to_find():
    truth = split([thing(A), thing(B, category=1, difficult=True)])
    assert ap50(truth, [found(A, 0.9), found(B, 0.9, category=1)]) == (1, 1)
    both = split([thing(A), thing(B, category=1)])
    assert ap50(both, [found(A, 0.9)]) == (1 / 2, 1 / 2)
    assert ap50(split([]), []) == (0, 0)


def test_it_is_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = split(*([drawn(rng) for _ in range(rng.integers(0, 5))] for _ in range(4)))
        predictions = [
            found(jittered(each.box, rng), rng.random(), image=image.image_id, category=7)
            for image in truth.images
            for each in image.objects
            for _ in range(rng.integers(0, 3))
        ]
        for points, metric in (("11", eleven_points), ("all", area_under_curve)):
            expected = slow_ap50(truth, predictions, metric)
            assert voc_scores(truth, predictions, points=points)["AP50"] == pytest.approx(expected)


def drawn(rng: np.random.Generator) -> CocoObject:
    box = (*rng.integers(0, 60, 2).tolist(), *rng.integers(20, 60, 2).tolist())
    return thing(box, difficult=bool(rng.random() < 0.3))


def jittered(box, rng: np.random.Generator):
    return [value + rng.normal(0, 5) for value in box[:2]] + [*box[2:]]


def slow_ap50(truth: CocoSplit, predictions: list[dict], metric) -> float:
    """Of class 7, line by line after VOCevaldet.m."""
    remaining = {image.image_id: [False] * len(image.objects) for image in truth.images}
    count = sum(not each.is_difficult for image in truth.images for each in image.objects)
    true = false = 0
    curve = []
    for result in sorted(predictions, key=lambda each: each["score"], reverse=True):
        objects = truth.images[result["image_id"]].objects
        overlaps = [overlap(result["bbox"], each.box) for each in objects]
        most = max(overlaps)
        best = overlaps.index(most)
        if most >= 0.5 and objects[best].is_difficult:
            continue
        if most >= 0.5 and not remaining[result["image_id"]][best]:
            remaining[result["image_id"]][best] = True
            true += 1
        else:
            false += 1
        curve.append((true / count if count else 0.0, true / (true + false)))
    return metric(curve) if count else 0.0


def overlap(one, other) -> float:
    sides = [
        min(one[n] + one[n + 2], other[n] + other[n + 2]) - max(one[n], other[n]) for n in (0, 1)
    ]
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def eleven_points(curve) -> float:
    levels = [n / 10 for n in range(11)]
    return sum(
        max((precision for recall, precision in curve if recall >= level), default=0.0)
        for level in levels
    ) / len(levels)


def area_under_curve(curve) -> float:
    area, last = 0.0, 0.0
    for recall, _ in curve:
        best = max(precision for other, precision in curve if other >= recall)
        area, last = area + (recall - last) * best, recall
    return area
