import copy
import logging

import pytest

from pcd_hub.errors import DataError
from tests.train.detection.drawn_coco import CATEGORIES, draw_coco, read, read_drawn, write


@pytest.fixture
def root(tmp_path):
    return draw_coco(tmp_path / "drawn")


def test_all_images_are_evaluated_and_those_with_objects_are_trained_on(root):
    content = read(root)
    crowd = copy.deepcopy(content["annotations"][-1]) | {"image_id": 105, "id": 77}
    write(root, "train", content | {"annotations": [*content["annotations"], crowd]})
    found = read_drawn(root)
    assert found.categories == CATEGORIES
    assert len(found.to_coco()["images"]) == 6
    # The last image has only a crowd.
    assert [image.image_id for image in found.with_objects()] == [100, 101, 102, 103, 104]


def test_the_ground_truth_equals_the_file(root):
    content, truth = read(root), read_drawn(root).to_coco()
    key = lambda entry: (entry["image_id"], entry["id"])  # noqa: E731
    assert sorted(truth["annotations"], key=key) == sorted(content["annotations"], key=key)
    assert truth["categories"] == content["categories"]


def test_missing_fields_have_cocos_defaults(root):
    content = read(root)
    for entry in content["annotations"]:
        for name in ("area", "iscrowd", "segmentation"):
            del entry[name]
    write(root, "train", content)
    (first, *_), *_ = (image.objects for image in read_drawn(root).images)
    assert (first.area, first.is_crowd, first.segmentation) == (400, False, None)


def test_invalid_annotations_can_be_dropped_with_a_warning(root, caplog):
    content = read(root)
    content["annotations"][2]["bbox"] = [5, 5, 9, 0]
    write(root, "train", content)
    with caplog.at_level(logging.WARNING, "pcd_hub"):
        found = read_drawn(root, bad_annotations="drop")
    assert len(found.to_coco()["annotations"]) == len(content["annotations"]) - 1
    assert "dropped 1 invalid annotations, first annotation 2: bbox [5, 5, 9, 0]" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "has no list 'images'"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
        (
            '{"images": [{"id": 1, "height": 3}], "annotations": [], "categories": []}',
            "'width' in 'images': expected an integer from 1 to 65535",
        ),
        (
            (
                '{"annotations": [], "categories": [], "images": '
                '[{"id": 1, "width": 65535, "height": 9999}]}'
            ),
            "image 1 has 65535 x 9999 pixels: expected at most 536870911",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 1.0}]}',
            "several entries for category 1",
        ),
        (
            (
                '{"annotations": [], "categories": [], "images": '
                '[{"id": 1, "width": 5, "height": 5, "file_name": "a\\nb"}]}'
            ),
            r"image 1: no file 'a\\nb'; add it",
        ),
        ("[" * 100_000, "cannot be read as JSON .RecursionError"),
        ('{"images": [{"id": 1' + "0" * 5000 + "}]}", "cannot be read as JSON .ValueError"),
    ],
)
def test_an_invalid_file_is_named_with_its_error(root, content, message):
    (root / "annotations" / "instances_train.json").write_text(content)
    with pytest.raises(DataError, match=f"instances_train.json.*{message}"):
        read_drawn(root)


def test_a_missing_image_file_is_named(root):
    (root / "images" / "train" / "3.png").unlink()
    with pytest.raises(DataError, match=r"image 103: no file .*3.png; add it"):
        read_drawn(root)


def test_a_repeated_image_id_is_rejected(root):
    content = read(root)
    write(root, "train", content | {"images": content["images"] + content["images"][:1]})
    with pytest.raises(DataError, match="several entries for image 100"):
        read_drawn(root)


def test_masks_can_be_ignored(root):
    content = read(root)
    content["annotations"][2]["segmentation"] = "none"
    write(root, "train", content)
    assert read_drawn(root, read_masks=False).images[0].objects[0].segmentation is None
