"""Masks of classes drawn from objects."""

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_codes

from pcd_hub.data.labelled.coco import read_split
from pcd_hub.data.labelled.masks.objects import (
    DrawingRule,
    check_outlines,
    draw_objects,
    number_classes,
)
from pcd_hub.data.labelled.segmentation_set import IGNORE, MaskSizeError
from pcd_hub.errors import DataError
from tests.train.detection.drawn_coco import write

WIDTH, HEIGHT = 20, 12


def polygon(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(inside):
    """Encode a mask as an uncompressed run-length code, column by column."""
    flat = np.asarray(inside, np.uint8).ravel(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff(ends).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}


def compressed(inside):
    code: Any = mask_codes.encode(np.asfortranarray(inside, np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}


def annotation(number, category, box, segmentation, **more):
    left, top, right, bottom = box
    return {
        "id": number,
        "image_id": 1,
        "category_id": category,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
        "segmentation": segmentation,
    } | more


def save(root, annotations, *, names=("cat", "dog"), size=(WIDTH, HEIGHT)):
    """Write one image with these annotations, and read it."""
    (root / "images" / "train").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "train" / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}
    categories = [{"id": 5 * n, "name": name} for n, name in enumerate(names, 1)]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    write(root, "train", content)
    return read_split(root / "annotations" / "instances_train.json", root / "images" / "train")


def drawn(split, **rule):
    return draw_objects(split, DrawingRule(**rule), name="drawn").pair(0)[1]


SMALL, LARGE = (2, 3, 6, 8), (0, 0, 12, 10)
OVERLAPPING = [
    annotation(1, 5, SMALL, polygon(*SMALL)),
    annotation(2, 10, LARGE, polygon(*LARGE)),
]


def test_the_smaller_or_the_later_object_is_on_top(tmp_path):
    split = save(tmp_path, OVERLAPPING)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:10, :12] = 2
    assert drawn(split, overlap="later").tolist() == expected.tolist()
    expected[3:8, 2:6] = 1
    assert drawn(split).tolist() == expected.tolist()
    swapped = dataclasses.replace(split.images[0], objects=split.images[0].objects[::-1])
    swapped = dataclasses.replace(split, images=(swapped,))
    assert drawn(swapped, overlap="later").tolist() == expected.tolist()


def test_the_area_that_the_file_states_decides(tmp_path):
    stated = [OVERLAPPING[0] | {"area": 200}, OVERLAPPING[1] | {"area": 100}]
    mask = drawn(save(tmp_path, stated))
    assert set(np.unique(mask)) == {0, 2}


@pytest.mark.parametrize("encode", [runs, compressed])
def test_run_lengths_draw_the_pixels_that_they_encode(encode, tmp_path):
    inside = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.4
    split = save(tmp_path, [annotation(1, 10, (0, 0, WIDTH, HEIGHT), encode(inside))])
    assert drawn(split).tolist() == (2 * inside).tolist()


def test_a_crowd_has_no_class(tmp_path):
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[:, 9:] = True
    crowd = annotation(3, 5, (9, 0, 20, 12), runs(inside), iscrowd=1)
    mask = drawn(save(tmp_path, [*OVERLAPPING, crowd]))
    assert (mask[10:, 10:] == IGNORE).all()
    assert (mask[:10, 12:] == IGNORE).all()
    assert (mask == IGNORE).sum() == 132 - 30, "a smaller object is drawn over a crowd"


def test_pixels_in_no_object_are_background_or_ignored(tmp_path):
    split = save(tmp_path, OVERLAPPING)
    assert draw_objects(split, DrawingRule(), name="a").classes == ("background", "cat", "dog")
    rule = DrawingRule(unlabelled="ignore")
    found = draw_objects(split, rule, name="a")
    assert found.classes == ("cat", "dog")
    assert (found.mask(0)[:, 12:] == IGNORE).all()
    assert found.mask(0)[0, 0] == 1


def test_a_category_of_this_name_is_the_background():
    names = {7: "cat", 9: "Background", 2: "dog"}
    assert number_classes(names, DrawingRule()) == (
        ["Background", "dog", "cat"],
        {9: 0, 2: 1, 7: 2},
    )
    no_other = DrawingRule(unlabelled="ignore")
    assert number_classes(names, no_other) == number_classes(names, DrawingRule())


def test_an_image_of_another_size_is_refused_before_its_mask_is_drawn(tmp_path):
    split = save(tmp_path, OVERLAPPING, size=(20_000, 20_000))  # 400 MB
    found = draw_objects(split, DrawingRule(), name="a")
    with pytest.raises(MaskSizeError, match=r"a.png has 20 x 12 pixels, its labels say 20000 x 20"):
        found.mask(0)


def test_objects_without_outline_are_refused_but_rectangles_beside_outlines_are_filled(tmp_path):
    split = save(tmp_path, [OVERLAPPING[0], annotation(2, 10, LARGE, [])])
    for label_format in ("coco", "yolo", "voc"):
        with pytest.raises(DataError, match=r"a.png: object 2 has a box and no outline \(1 of 2"):
            check_outlines([split], label_format=label_format)
    check_outlines([split], label_format="labelme")
    assert drawn(split).tolist() == drawn(save(tmp_path, OVERLAPPING)).tolist()
    alone = save(tmp_path, [annotation(2, 10, LARGE, [])])
    with pytest.raises(DataError, match=r"1 of 1 objects\): expected polygons or masks"):
        check_outlines([alone], label_format="cvat")


@pytest.mark.parametrize(
    ("names", "rule", "message"),
    [
        (["cat"], {"unlabelled": "ignore"}, "has 1 classes .* --data.unlabelled ignore: expected"),
        ([str(n) for n in range(254)], {}, "has 255 classes .*: expected 2 to 254"),
    ],
)
def test_the_number_of_classes_is_checked(names, rule, message, tmp_path):
    split = save(tmp_path, [], names=names)
    with pytest.raises(DataError, match=message):
        draw_objects(split, DrawingRule(**rule), name="a")


def test_the_fingerprint_tells_the_rules_apart_and_a_copy_draws_the_same(tmp_path):
    split = save(tmp_path, OVERLAPPING)
    rules = [DrawingRule(), DrawingRule(overlap="later"), DrawingRule(unlabelled="ignore")]
    sets = [draw_objects(split, rule, name="a") for rule in rules]
    assert len({each.fingerprint() for each in sets}) == 3
    copy = pickle.loads(pickle.dumps(sets[0]))
    assert copy.fingerprint() == sets[0].fingerprint()
    assert copy.mask(0).tolist() == sets[0].mask(0).tolist()
