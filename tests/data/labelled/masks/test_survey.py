"""The survey of a segmentation set counts what is drawn, and sorts out what does not fit."""

import json
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.labelled.masks.survey import survey_segmentation
from pcd_hub.data.labelled.segmentation import Columns, open_segmentation
from pcd_hub.train.configs.labelled import SegmentationSetConfig
from pcd_hub.train.labelled_splits import (
    open_segmentation_splits,
    survey_mask_splits,
    survey_masks,
)
from tests.train.detection.drawn_coco import draw_coco, read, write

WIDTH, HEIGHT = 40, 30
COUNTS = {"train": 5, "val": 3}


def mask_of(number):
    """A quarter of class 1, and 30 pixels without label; image 3 has no label at all."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:15, :20] = 1
    mask[:, -1] = 255
    return np.full_like(mask, 255) if number == 3 else mask


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for number in range(count):
            for kind in ("images", "masks"):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
            coarse.resize((WIDTH, HEIGHT)).save(tmp_path / "images" / split / f"{number}.png")
            save_mask(tmp_path, split, number, mask_of(number))
    content = {"classes": ["wall", "crack", "door"], "ignore_index": 255}
    (tmp_path / "classes.json").write_text(json.dumps(content))
    return tmp_path


def save_mask(root, split, number, values):
    Image.fromarray(values).save(root / "masks" / split / f"{number}.png")


def survey(root, **settings):
    return survey_masks(SegmentationSetConfig(source=str(root), **settings))


def test_classes_are_counted_in_images_and_pixels(root):
    found = survey(root)
    train, val = found.splits
    assert (train.num_images, train.num_empty, val.num_images, val.num_empty) == (5, 1, 3, 0)
    assert train.counts == {"wall": 4, "crack": 4, "door": 0}
    assert train.pixels == {"wall": 4 * (1200 - 300 - 30), "crack": 4 * 300, "door": 0}
    assert train.num_ignored_pixels == 4 * 30 + 1200
    assert found.label_format == "masks"
    assert found.num_shared == found.num_similar == 0
    assert found.warnings() == [
        "train: classes that do not occur: 1, the first is door",
        "val: classes that do not occur: 1, the first is door",
    ]
    lines = [" ".join(line.split()) for line in found.table().splitlines()]
    assert "images without labels 1 0" in lines
    assert "pixels without label 22.00 % 2.50 %" in lines
    assert "crack 4 25.64 % 3 25.64 %" in lines
    json.dumps(found.as_json())


def test_masks_that_do_not_fit_are_sorted_out_and_named(root):
    save_mask(root, "train", 0, mask_of(0)[:, :20])
    save_mask(root, "train", 1, np.full((HEIGHT, WIDTH), 9, np.uint8))
    (root / "masks" / "train" / "2.png").write_bytes(b"no mask")
    (root / "masks" / "train" / "4.png").unlink()
    (root / "images" / "val" / "2.png").unlink()
    found = survey(root)
    train, val = found.splits
    assert [len(each) for each in (train.misfits, train.other_values, train.broken)] == [1, 1, 1]
    assert train.unlabelled == (str(root / "images" / "train" / "4.png"),)
    assert val.unmatched == (str(root / "masks" / "val" / "2.png"),)
    assert train.pixels is not None
    assert sum(train.pixels.values()) == 0, "what does not fit is not counted"
    lines = found.warnings()
    for expected in (
        "masks of another size than their image: 1, the first is .*0.png has 40 x 30 pixels, its",
        "masks with a value that is no class: 1, the first is .*1.png has the value 9: expected",
        "images that cannot be read or do not fit: 1, the first is .*2.png: UnidentifiedImage",
        "images without label file: 1, the first is .*4.png",
        "label files without image: 1, the first is .*2.png",
    ):
        assert any(re.search(expected, line) for line in lines), expected
    assert "masks of another size" in found.table()


def test_images_in_both_splits_are_found(root):
    first = root / "images" / "train" / "0.png"
    (root / "images" / "val" / "0.png").write_bytes(first.read_bytes())
    with Image.open(root / "images" / "train" / "1.png") as image:
        image.save(root / "images" / "val" / "1.png", compress_level=0)
    found = survey(root)
    assert (found.num_shared, found.num_similar) == (1, 1)
    assert "images in train and in val: 2, 1 of them near copies" in found.table()


def test_the_start_of_a_run_compares_files_and_sizes_without_reading_masks(root):
    save_mask(root, "val", 1, mask_of(0)[:, :20])
    save_mask(root, "val", 2, np.full((HEIGHT, WIDTH), 9, np.uint8))
    config = SegmentationSetConfig(source=str(root))
    splits = open_segmentation_splits(config)
    (line,) = survey_mask_splits(config, *splits, decode_all=False).warnings()
    assert line.startswith("val: masks of another size than their image: 1, the first is ")


def test_objects_are_counted_without_drawing_and_their_masks_with(tmp_path):
    root = draw_coco(tmp_path)
    content = read(root)
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]
    content["images"][1]["width"] += 1
    write(root, "train", content)
    found = survey(root)
    train, val = found.splits
    assert found.label_format == "coco"
    assert (len(train.dropped), len(train.misfits)) == (1, 1)
    assert (train.num_empty, val.num_empty) == (1, 1)
    assert val.counts == {"background": 4, "square": 3, "bar": 3}
    assert val.pixels is not None
    assert val.pixels["square"] == 3 * 400
    assert val.num_ignored_pixels == 56, "the crowd"
    config = SegmentationSetConfig(source=str(root), bad_annotations="drop")
    splits = open_segmentation_splits(config)
    unread = survey_mask_splits(config, *splits, decode_all=False)
    assert unread.splits[1].counts == {"background": 4, "square": 3, "bar": 3}
    assert len(unread.splits[0].misfits) == 1
    ignoring = survey(root, unlabelled="ignore").splits[1]
    assert ignoring.counts == {"square": 3, "bar": 3}
    assert ignoring.num_ignored_pixels > 4 * 1000


def test_rows_of_a_table_are_compared_by_their_pixels(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)) for _ in range(4)]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    masks = [Image.fromarray(mask_of(0))] * 3
    splits = {"train": images[:3], "val": [images[3], images[0], images[0]]}
    saved = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"image": rows, "mask": masks}, features=features)
            for name, rows in splits.items()
        }
    )
    saved.save_to_disk(tmp_path / "saved")
    columns = Columns(num_classes=2)
    opened = [
        (name, open_segmentation(f"hf-disk:{tmp_path / 'saved'}", name, columns=columns))
        for name in splits
    ]
    found = survey_segmentation(opened, label_format="masks", decode_all=True)
    assert (found.num_shared, found.num_similar) == (2, 0)
    assert found.splits[0].counts == {"class 0": 3, "class 1": 3}
