import numpy as np
import pytest
from pycocotools import mask as mask_codes

from pcd_hub.train.detection.coco_metrics import STATISTICS, coco_scores

FRAMES = [{"id": 7, "width": 200, "height": 200}, {"id": 9, "width": 200, "height": 200}]


def truth(*boxes: list[float], crowd: list[float] | None = None, first_id: int = 1) -> dict:
    """Objects of category 18 in the first picture; the second picture is empty."""
    entries = [(box, 0) for box in boxes] + ([(crowd, 1)] if crowd else [])
    return {
        "images": FRAMES,
        "categories": [{"id": 18, "name": "dog"}, {"id": 90, "name": "brush"}],
        "annotations": [
            {
                "id": number,
                "image_id": 7,
                "category_id": 18,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": iscrowd,
                "segmentation": mask(box),
            }
            for number, (box, iscrowd) in enumerate(entries, start=first_id)
        ],
    }


def found(box: list[float], score: float, *, image_id: int = 7, masked: list | None = None) -> dict:
    return {
        "image_id": image_id,
        "category_id": 18,
        "bbox": box,
        "score": score,
        "segmentation": mask(masked or box),
    }


def mask(box: list[float]) -> dict:
    left, top, width, height = map(int, box)
    inside = np.zeros((200, 200), np.uint8, order="F")
    inside[top : top + height, left : left + width] = 1
    return mask_codes.encode(inside)


A, B, ELSEWHERE = [10, 10, 40, 40], [100, 100, 50, 50], [10, 120, 40, 40]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_average_precision_on_paper(kind):
    # Right, wrong, right: precision 1 up to recall 1/2 (51 of 101 points), then 2/3.
    predictions = [found(A, 0.9), found(ELSEWHERE, 0.8), found(B, 0.7)]
    scores, by_category = coco_scores(truth(A, B), predictions, kind)
    expected = (51 + 50 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP75", "APm"):
        assert scores[name] == pytest.approx(expected, abs=1e-9)
    assert scores["APl"] == scores["APs"] == -1  # both are between 32 and 96 pixels
    assert scores["AR1"] == 0.5
    assert scores["AR10"] == 1
    assert by_category == {18: pytest.approx(expected)}
    assert tuple(scores) == STATISTICS


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_overlap_decides_at_ten_thresholds(kind):
    # 82 of 100 rows: an overlap of 0.82, enough for 0.50, 0.55 ... 0.80.
    scores, _ = coco_scores(truth([0, 0, 100, 100]), [found([0, 0, 100, 82], 0.5)], kind)
    assert scores["AP"] == pytest.approx(0.7)
    scores, _ = coco_scores(truth([0, 0, 100, 100]), [found([0, 0, 100, 62], 0.5)], kind)
    three = [scores[name] for name in ("AP", "AP50", "AP75")]
    assert three == pytest.approx([0.3, 1, 0])


def test_what_lies_in_a_crowd_is_no_false_alarm():
    crowd = [90, 0, 100, 100]
    predictions = [found([100, 10, 40, 40], 0.9), found(A, 0.5)]
    assert coco_scores(truth(A, crowd=crowd), predictions, "bbox")[0]["AP"] == pytest.approx(1)
    assert coco_scores(truth(A), predictions, "bbox")[0]["AP"] == pytest.approx(0.5)


def test_a_false_alarm_in_a_picture_without_objects_counts():
    predictions = [found(A, 0.9, image_id=9), found(A, 0.5)]
    assert coco_scores(truth(A), predictions, "bbox")[0]["AP"] == pytest.approx(0.5)


def test_an_annotation_with_id_0_can_be_found():
    assert coco_scores(truth(A, first_id=0), [found(A, 0.5)], "bbox")[0]["AP"] == pytest.approx(1)


def test_nothing_found_is_zero():
    assert coco_scores(truth(A), [], "segm")[0]["AP"] == 0


def test_the_mask_says_how_large_a_false_alarm_is():
    small = [0, 0, 10, 10]
    alarm = found([100, 0, 100, 100], 0.9, masked=[100, 0, 20, 20])
    predictions = [alarm, found(small, 0.5)]
    # By its mask of 400 pixels the alarm is small as the object, by its box it would be left out.
    assert coco_scores(truth(small), predictions, "segm")[0]["APs"] == pytest.approx(0.5)
    assert coco_scores(truth(small), predictions, "bbox")[0]["APs"] == pytest.approx(1)


def test_nothing_is_printed_and_nothing_changed(capsys):
    objects, predictions = truth(A), [found(A, 0.5)]
    before = repr(objects), repr(predictions)
    coco_scores(objects, predictions, "segm")
    assert capsys.readouterr().out == ""
    assert (repr(objects), repr(predictions)) == before
