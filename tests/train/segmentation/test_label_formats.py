"""The same scene in every format of objects has the same masks."""

import json

import numpy as np
import pytest

from pcd_hub.data.labelled.segmentation_set import IGNORE
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.detection import CocoDataConfig
from pcd_hub.train.configs.labelled import SegmentationSetConfig
from pcd_hub.train.detection.splits import read_splits
from pcd_hub.train.labelled_splits import open_segmentation_splits, resolve_label_format
from tests.train.detection.drawn_coco import draw_coco
from tests.train.detection.drawn_formats import write_cvat, write_labelme, write_voc, write_yolo

WRITERS = {
    "yolo": write_yolo,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "cvat mask": lambda root: write_cvat(root, "mask"),
}


def masks_of(root, **settings):
    """Return for every image the name of each pixel's class."""
    config = SegmentationSetConfig(source=str(root), **settings)
    found = []
    for images in open_segmentation_splits(config):
        names = np.array([*images.classes, *[""] * 256])
        names[IGNORE] = "ignored"
        found += [names[images.pair(index)[1]] for index in range(len(images))]
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_masks_of_the_same_scene_in_coco(kind, tmp_path):
    expected = masks_of(draw_coco(tmp_path / "coco", train=3, val=2))
    root = WRITERS[kind](tmp_path / "other")
    config = SegmentationSetConfig(source=str(root))
    assert resolve_label_format(config) == kind.split()[0]
    found = masks_of(root)
    assert len(found) == len(expected) == 5
    assert {name for mask in found for name in np.unique(mask)} == {"background", "bar", "square"}
    for mask, other in zip(expected, found, strict=True):
        is_labelled = mask != "ignored"  # the crowd, which COCO's file alone has
        assert (mask == other)[is_labelled].all()


@pytest.mark.parametrize("write", [write_voc, lambda root: write_yolo(root, polygons=False)])
def test_boxes_alone_are_refused(write, tmp_path):
    with pytest.raises(DataError, match=r"0.png: object \d has a box and no outline .*polygons"):
        masks_of(write(tmp_path))


def test_labelmes_region_to_ignore_has_no_class(tmp_path):
    root = write_labelme(tmp_path)
    file = root / "train" / "0.json"
    content = json.loads(file.read_text())
    before = masks_of(root)[0]
    corners = [[0, 40], [64, 40], [64, 48], [0, 48]]
    content["shapes"].append({"label": "__ignore__", "points": corners, "shape_type": "polygon"})
    file.write_text(json.dumps(content))
    after = masks_of(root, overlap="later")[0]
    assert (after[40:] == "ignored").all()
    assert (after[:40] == before[:40]).all()


def test_masks_come_first_and_a_format_may_be_set(tmp_path):
    root = draw_coco(tmp_path / "set")
    (root / "masks").mkdir()
    assert resolve_label_format(SegmentationSetConfig(source=str(root))) == "masks"
    assert masks_of(root, format="coco")
    with pytest.raises(DataError, match=r"classes.json cannot be read .FileNotFoundError"):
        masks_of(root)
    with pytest.raises(ConfigError, match=r"--data.format coco: voc: has masks; expected auto"):
        resolve_label_format(SegmentationSetConfig(source="voc:a", format="coco"))


def test_a_folder_without_labels_names_the_layouts(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"no labels of split 'train' .* masks: images/train and"):
        masks_of(tmp_path)
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; name the data set's"):
        masks_of(tmp_path / "nowhere")


def test_an_invalid_object_is_named_or_dropped(tmp_path):
    root = write_yolo(tmp_path)
    file = root / "labels" / "train" / "0.txt"
    file.write_text(file.read_text() + "\n0 90 20 10 10 30 40\n")
    with pytest.raises(DataError, match=r"0.txt, line 3: .*\(are they pixels\?\)"):
        masks_of(root)
    assert len(masks_of(root, bad_annotations="drop")) == 5


def test_labelmes_background_cuts_a_hole(tmp_path):
    """As a category of this name in COCO; a detector has no such class."""
    root = write_labelme(tmp_path)
    for split in ("train", "val"):
        for file in (root / split).glob("*.json"):
            content = json.loads(file.read_text())
            corners = [[0, 0], [64, 0], [64, 48], [0, 48]]
            hole = [[20, 20], [40, 20], [40, 40], [20, 40]]
            content["shapes"] = [
                {"label": label, "points": points, "shape_type": "polygon"}
                for label, points in (("bar", corners), ("_background_", hole), ("square", hole))
            ][: 3 if split == "val" else 2]
            file.write_text(json.dumps(content))
    for overlap in ("smaller", "later"):
        mask = masks_of(root, overlap=overlap, unlabelled="ignore")[0]
        assert mask[30, 30] == "_background_"
        assert mask[5, 5] == "bar"
    train, _ = read_splits(CocoDataConfig(source=root))
    assert set(train.categories.values()) == {"bar", "square"}
    assert [len(image.objects) for image in train.images] == [1] * len(train.images)
