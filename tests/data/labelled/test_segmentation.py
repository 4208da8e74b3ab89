import json
import pickle

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.labelled.segmentation import Columns, open_segmentation
from pcd_hub.data.labelled.segmentation_set import IGNORE
from pcd_hub.errors import DataError


def save_image(path, size=(6, 4), colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def save_mask(path, values, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).convert("L").save(path)
    if mode == "P":
        indexed = Image.fromarray(np.asarray(values, np.uint8), "P")
        indexed.putpalette(bytes(range(256)) * 3)
        indexed.save(path)


VALUES = [[0, 1, 2, 0, 1, 2]] * 3 + [[255] * 6]


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for name in ("b", "sub/a"):
            save_image(tmp_path / "images" / split / f"{name}.jpg")
            save_mask(tmp_path / "masks" / split / f"{name}.png", VALUES)
    classes = {"classes": ["ground", "tree", "car"], "ignore_index": 255}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    return tmp_path


def test_a_folder_pairs_images_and_masks_by_name(folder):
    found = open_segmentation(str(folder), "train")
    assert (len(found), found.classes) == (2, ("ground", "tree", "car"))
    assert found.name == f"{folder.name}/train"
    image, classes = found.pair(0)
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert classes.tolist() == [[0, 1, 2, 0, 1, 2]] * 3 + [[IGNORE] * 6]


def test_a_pickled_data_set_loads_the_same_images(folder):
    found = open_segmentation(str(folder), "train")
    copy = pickle.loads(pickle.dumps(found))
    assert np.array_equal(copy.mask(1), found.mask(1))
    assert copy.image(0).tobytes() == found.image(0).tobytes()


def test_a_palette_mask_keeps_its_indices(folder):
    save_mask(folder / "masks" / "train" / "b.png", VALUES, mode="P")
    assert open_segmentation(str(folder), "train").mask(0).tolist()[0] == [0, 1, 2, 0, 1, 2]


def test_any_index_may_be_ignored(folder):
    (folder / "classes.json").write_text('{"classes": ["a", "b"], "ignore_index": 2}')
    save_mask(folder / "masks" / "train" / "b.png", [[0, 1, 2, 0, 1, 2]] * 4)
    assert open_segmentation(str(folder), "train").mask(0)[0].tolist() == [0, 1, 255, 0, 1, 255]


def break_value(folder):
    save_mask(folder / "masks" / "train" / "b.png", [[0, 1, 7, 0, 1, 2]] * 4)


def break_colour(folder):
    save_image(folder / "masks" / "train" / "b.png")


def break_size(folder):
    save_mask(folder / "masks" / "train" / "b.png", [[0, 1], [1, 0]])


def break_direction(folder):
    save_mask(folder / "masks" / "train" / "b.png", [[0, 1, 0, 1]] * 6)


def break_file(folder):
    (folder / "masks" / "train" / "b.png").write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_value, r"masks/train/b.png has the value 7: expected one of 3 classes"),
        (
            break_colour,
            r"masks/train/b.png is an image of mode RGB: expected a mask of class indices",
        ),
        (break_size, r"images/train/b.jpg has 6 x 4 pixels, its mask .*b.png 2 x 2"),
        (break_direction, r"images/train/b.jpg has 6 x 4 pixels, its mask .*b.png 4 x 6"),
        (break_file, r"masks/train/b.png: UnidentifiedImageError"),
    ],
)
def test_an_invalid_mask_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_segmentation(str(folder), "train").pair(0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "masks/train/b.png").unlink(),
            r"images/train/b.jpg has no mask of the same name .*1 of 2 have none",
        ),
        (
            lambda f: (f / "images/train/b.jpg").unlink(),
            r"masks/train/b.png has no image of the same name",
        ),
        (
            lambda f: (f / "classes.json").unlink(),
            r"classes.json cannot be read .FileNotFoundError",
        ),
        (
            lambda f: (f / "classes.json").write_text("[1]"),
            r"classes.json cannot be read .TypeError.: expected",
        ),
        (
            lambda f: (f / "classes.json").write_text('{"classes": ["one"]}'),
            r"lists 1 classes: expected 2 to 254",
        ),
        (
            lambda f: (f / "classes.json").write_text(
                '{"classes": ["a", "b"], "ignore_index": -1}'
            ),
            r"ignore_index -1: expected an integer from 0 to 255",
        ),
    ],
)
def test_an_invalid_folder_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_segmentation(str(folder), "train")


def test_a_missing_split_is_an_error_that_lists_the_others(folder):
    with pytest.raises(DataError, match=r"there is no .*images/test; .*images has train, val"):
        open_segmentation(str(folder), "test")
    (folder / "nowhere").mkdir()
    (folder / "nowhere/classes.json").write_text('{"classes": ["a", "b"]}')
    with pytest.raises(DataError, match=r"there is no .*nowhere/images/train.*has no splits"):
        open_segmentation(str(folder / "nowhere"), "train")
    with pytest.raises(DataError, match=r"unknown kind of data set 'ade2k'; did you mean 'ade20k'"):
        open_segmentation("ade2k:x", "train")


def test_two_images_of_the_same_name_are_rejected(folder):
    save_image(folder / "images" / "train" / "b.png")
    with pytest.raises(DataError, match=r"b.png and .*b.jpg have the same name"):
        open_segmentation(str(folder), "train")


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path):
    save_image(tmp_path / "images" / "validation" / "ADE_val_1.jpg")
    save_mask(tmp_path / "annotations" / "validation" / "ADE_val_1.png", [[0, 1, 150, 2, 3, 4]] * 4)
    found = open_segmentation(f"ade20k:{tmp_path}", "validation")
    assert len(found.classes) == 150
    assert found.mask(0)[0].tolist() == [IGNORE, 0, 149, 1, 2, 3]
    assert found.classes[0] == "class 1"
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [f"{n}\t0.1\t1\t1\t1\tthing{n}, other" for n in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    assert open_segmentation(f"ade20k:{tmp_path}", "validation").classes[149] == "thing150"


def test_voc_reads_the_list_of_its_split(tmp_path):
    for name in ("2007_1", "2007_2"):
        save_image(tmp_path / "JPEGImages" / f"{name}.jpg")
        save_mask(tmp_path / "SegmentationClass" / f"{name}.png", [[0, 15, 20, 255, 0, 0]] * 4, "P")
    listed = tmp_path / "ImageSets" / "Segmentation" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2007_2\n")
    found = open_segmentation(f"voc:{tmp_path}", "val")
    assert len(found) == 1
    assert [found.classes[c] for c in found.mask(0)[0][:3]] == ["background", "person", "tvmonitor"]
    listed.write_text("")
    with pytest.raises(DataError, match="no labelled image in its split val"):
        open_segmentation(f"voc:{tmp_path}", "val")
    with pytest.raises(DataError, match=r"there is no .*train.txt: expected the folder VOCdevkit"):
        open_segmentation(f"voc:{tmp_path}", "train")


def test_cityscapes_maps_ids_to_the_19_classes(tmp_path):
    stem = tmp_path / "leftImg8bit" / "val" / "ulm" / "ulm_000000_000019"
    save_image(stem.with_name(stem.name + "_leftImg8bit.png"))
    truth = tmp_path / "gtFine" / "val" / "ulm" / stem.name
    save_mask(truth.with_name(truth.name + "_gtFine_labelIds.png"), [[7, 8, 33, 0, 29, 26]] * 4)
    save_image(truth.with_name(truth.name + "_gtFine_color.png"))
    found = open_segmentation(f"cityscapes:{tmp_path}", "val")
    assert (len(found), len(found.classes)) == (1, 19)
    assert found.mask(0)[0].tolist() == [0, 1, 18, IGNORE, IGNORE, 13]
    assert found.classes[13] == "car"


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [Image.new("RGB", (6, 4), "red")] * 2,
        "annotation": [Image.fromarray(np.asarray([[0, 1, 2, 3, 1, 1]] * 4, np.uint8))] * 2,
    }
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(val=made).save_to_disk(tmp_path / "saved")
    return f"hf-disk:{tmp_path / 'saved'}"


def test_a_dataset_with_image_and_mask_columns_is_opened(saved):
    columns = Columns(mask="annotation", num_classes=3, reduce_zero_label=True)
    found = open_segmentation(saved, "val", columns=columns)
    image, classes = found.pair(1)
    assert (len(found), image.size) == (2, (6, 4))
    assert classes[0].tolist() == [IGNORE, 0, 1, 2, 0, 0]


def test_missing_columns_and_classes_are_named_with_their_options(saved):
    with pytest.raises(DataError, match=r"no column 'mask', only image, annotation"):
        open_segmentation(saved, "val")
    with pytest.raises(DataError, match="--data.num-classes None: expected 2 to 254"):
        open_segmentation(saved, "val", columns=Columns(mask="annotation"))
    for wrong in (1, 255):
        with pytest.raises(DataError, match=rf"--data.num-classes {wrong}: expected 2 to 254"):
            open_segmentation(saved, "val", columns=Columns(mask="annotation", num_classes=wrong))
    columns = Columns(mask="annotation", num_classes=3, ignore=300)
    with pytest.raises(DataError, match="--data.ignore 300: expected a mask value from 0 to 255"):
        open_segmentation(saved, "val", columns=columns)
    with pytest.raises(
        DataError, match=r"saved/train .*saved has the splits val.: expected a dataset"
    ):
        open_segmentation(saved, "train", columns=Columns(mask="annotation"))


def test_another_mask_column_of_the_same_images_is_another_set(saved):
    masks = Columns(mask="annotation", num_classes=3)
    images = Columns(mask="image", num_classes=3)
    first, second = (open_segmentation(saved, "val", columns=each) for each in (masks, images))
    assert first.fingerprint() != second.fingerprint()


def test_a_folder_valid_is_the_split_val(folder):
    for kind in ("images", "masks"):
        (folder / kind / "train").rename(folder / kind / "valid")
    assert len(open_segmentation(str(folder), "val")) > 0
