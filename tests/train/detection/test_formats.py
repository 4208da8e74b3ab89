"""The same scene in every format has the same targets."""

import pytest
import torch

from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.detection import CocoDataConfig
from pcd_hub.train.detection.batches import Labels, read_example
from pcd_hub.train.detection.splits import read_splits, resolve_format, use_masks
from tests.train.detection.drawn_coco import draw_coco
from tests.train.detection.drawn_formats import write_cvat, write_labelme, write_voc, write_yolo

WRITERS = {
    "yolo": write_yolo,
    "yolo boxes": lambda root: write_yolo(root, polygons=False),
    "voc": write_voc,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "cvat box": lambda root: write_cvat(root, "box"),
    "cvat mask": lambda root: write_cvat(root, "mask"),
}
WITHOUT_MASKS = {"yolo boxes", "voc", "cvat box"}


def targets(config, *, masks):
    """Return for every image: its name, and boxes, names of classes and masks of its objects."""
    found = {}
    for split in read_splits(config):
        labels = Labels(split.categories)
        for image in split.images:
            target = read_example(image, labels, masks=masks).target
            names = [split.categories[labels.category_id(each)] for each in target["labels"]]
            order = sorted(range(len(names)), key=names.__getitem__)
            found[split is None, image.path.name, len(found)] = (
                [names[each] for each in order],
                target["boxes"][order],
                target["masks"][order] if masks else None,
            )
    return list(found.values())


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_targets_of_the_same_scene_in_coco(kind, tmp_path):
    coco = CocoDataConfig(source=draw_coco(tmp_path / "coco", train=3, val=2))
    other = CocoDataConfig(source=WRITERS[kind](tmp_path / "other"))
    assert resolve_format(other) == kind.split()[0]
    masks = kind not in WITHOUT_MASKS
    assert use_masks("auto", *read_splits(other)) == masks
    expected, found = targets(coco, masks=masks), targets(other, masks=masks)
    assert len(found) == len(expected) == 5
    for (names, boxes, bitmaps), (own_names, own_boxes, own_bitmaps) in zip(
        expected, found, strict=True
    ):
        assert own_names == names
        assert torch.allclose(own_boxes.float(), boxes.float(), atol=1e-4)
        if masks:
            assert torch.equal(own_bitmaps, bitmaps)


def test_labels_may_be_named_by_their_folders(tmp_path):
    root = write_voc(tmp_path)
    named = CocoDataConfig(
        train_images=root / "images" / "train",
        train_annotations=root / "annotations" / "train",
        test_images=root / "images" / "val",
        test_annotations=root / "annotations" / "val",
    )
    assert read_splits(named) == read_splits(CocoDataConfig(source=root))
    half = CocoDataConfig(source=root, train_annotations=root / "annotations" / "train")
    with pytest.raises(ConfigError, match="train-images and --data.train-annotations: expected"):
        read_splits(half)


def test_a_wrong_format_is_refused(tmp_path):
    with pytest.raises(DataError, match="names no classes for its YOLO labels"):
        read_splits(CocoDataConfig(source=write_voc(tmp_path), format="yolo"))
