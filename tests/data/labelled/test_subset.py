"""Part of the labels."""

import pickle

import pytest

from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.data.labelled.subset import coco_subset, draw_rows, segmentation_subset
from tests.evaluate.drawn_sets import draw_segmentation
from tests.train.detection.drawn_coco import draw_coco, read_drawn


@pytest.mark.parametrize("seed", [0, 1])
def test_a_smaller_share_is_part_of_a_larger_one(seed):
    ten, thirty, all_rows = (draw_rows(40, share=share, seed=seed) for share in (0.1, 0.3, 1.0))
    assert set(ten) < set(thirty) < set(all_rows)
    assert (len(ten), len(thirty), all_rows) == (4, 12, list(range(40)))
    assert thirty == sorted(thirty) == draw_rows(40, share=0.3, seed=seed)


def test_another_seed_draws_other_rows_and_one_row_is_drawn_at_least():
    assert draw_rows(40, share=0.1, seed=0) != draw_rows(40, share=0.1, seed=1)
    assert len(draw_rows(3, share=0.01, seed=0)) == 1


def test_masks_stay_with_their_images(tmp_path):
    whole = open_segmentation(str(draw_segmentation(tmp_path)), "train")
    part = pickle.loads(pickle.dumps(segmentation_subset(whole, share=0.5, seed=3)))
    rows = draw_rows(len(whole), share=0.5, seed=3)
    assert len(part) == 6
    assert part.classes == whole.classes
    assert part.name == f"{whole.name}, 50 % drawn"
    for index, row in enumerate(rows):
        assert part.image_name(index) == whole.image_name(row)
        assert (part.mask(index) == whole.mask(row)).all()
    others = [segmentation_subset(whole, share=0.5, seed=seed) for seed in (3, 4)]
    assert part.fingerprint() == others[0].fingerprint() != others[1].fingerprint()
    assert segmentation_subset(whole, share=1.0, seed=3) is whole


def test_only_images_with_objects_are_drawn(tmp_path):
    split = read_drawn(draw_coco(tmp_path, train=12))
    part = coco_subset(split, share=0.5, seed=0)
    assert len(part.images) == round(0.5 * len(split.with_objects())) == len(part.with_objects())
    assert all(image in split.images for image in part.images)
    assert part.categories == split.categories
    assert part.fingerprint() != split.fingerprint()
    assert coco_subset(split, share=1.0, seed=0) is split
