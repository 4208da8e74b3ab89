import pytest

from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.detection import CocoDataConfig
from pcd_hub.train.detection.splits import read_splits, use_masks
from tests.train.detection.drawn_coco import draw_coco, read, write


@pytest.fixture
def root(tmp_path):
    return draw_coco(tmp_path / "drawn")


def test_files_can_be_named_in_three_ways(root):
    ours = read_splits(CocoDataConfig(source=root))
    explicit = read_splits(
        CocoDataConfig(
            train_images=root / "images" / "train",
            train_annotations=root / "annotations" / "instances_train.json",
            test_images=root / "images" / "val",
            test_annotations=root / "annotations" / "instances_val.json",
        )
    )
    assert explicit == ours
    for name in ("train", "val"):  # COCO's own
        (root / "images" / name).rename(root / f"{name}2017")
        (root / "annotations" / f"instances_{name}.json").rename(
            root / "annotations" / f"instances_{name}2017.json"
        )
    own, _ = read_splits(CocoDataConfig(source=root, train_split="train2017", test_split="val2017"))
    assert own.images[0].path == root / "train2017" / "0.png"
    assert own.to_coco() == ours[0].to_coco()


def test_a_missing_split_is_named_with_the_existing_ones(root):
    with pytest.raises(DataError, match=r"instances_test.json \(its folder holds instances_train"):
        read_splits(CocoDataConfig(source=root, test_split="test"))
    with pytest.raises(DataError, match="there is no folder .*nowhere; name the images'"):
        read_splits(CocoDataConfig(source=root, train_images=root / "nowhere"))
    with pytest.raises(ConfigError, match="no data: name its folder with --data.source"):
        read_splits(CocoDataConfig())


def test_both_splits_need_the_same_categories(root):
    content = read(root, "val")
    content["categories"][1]["name"] = "rod"
    write(root, "val", content)
    with pytest.raises(DataError, match=r"differ in category 17 \('(bar|rod)'\)"):
        read_splits(CocoDataConfig(source=root))


def test_a_split_without_objects_is_rejected(root):
    write(root, "val", read(root, "val") | {"annotations": []})
    with pytest.raises(DataError, match="instances_val.json has no object"):
        read_splits(CocoDataConfig(source=root))


def test_either_all_objects_have_masks_or_none(root, tmp_path):
    both = read_splits(CocoDataConfig(source=root))
    boxes = read_splits(CocoDataConfig(source=draw_coco(tmp_path / "boxes", masks=False)))
    assert use_masks("auto", *both)
    assert not use_masks("no", *both)
    assert not use_masks("auto", *boxes)
    with pytest.raises(DataError, match=r"annotation 0 has no mask \(11 of 29 objects have none\)"):
        use_masks("auto", boxes[0], both[0], both[1])
    with pytest.raises(DataError, match="--detector.masks no"):
        use_masks("yes", *boxes)
