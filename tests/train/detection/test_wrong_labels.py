"""Mistakes and hostile content in label files are refused in one line that names the place."""

import re

import pytest

from pcd_hub.errors import DataError
from pcd_hub.train.configs.detection import CocoDataConfig
from pcd_hub.train.detection.splits import read_splits
from tests.train.detection.drawn_formats import write_cvat, write_labelme, write_voc, write_yolo

FILES = {
    "voc": (write_voc, "annotations/train/0.xml"),
    "cvat": (write_cvat, "annotations.xml"),
    "yolo": (lambda root: write_yolo(root, polygons=False), "labels/train/0.txt"),
    "names": (write_yolo, "data.yaml"),
    "labelme": (write_labelme, "train/0.json"),
}
ENTITY = '<!DOCTYPE a [<!ENTITY x "many">]>'


def replaced(pattern, by):
    return lambda text: re.sub(pattern, by, text, count=1)


MISTAKES = [
    ("voc", lambda text: ENTITY + text, "declares a document type or entities"),
    ("voc", lambda _: "<a>" * 40 + "</a>" * 40, "nested deeper than 32 levels"),
    ("voc", lambda _: "hello", "cannot be read as XML"),
    ("voc", replaced(r"<width>\d+", "<width>900"), "64 x 48 pixels, .* says 900 x 48"),
    ("voc", replaced(r"<xmin>\d+", "<xmin>nan"), r"object 1: bbox \[nan"),
    ("voc", replaced(r"<xmax>\d+", "<xmax>9000"), "expected a box inside the 64 x 48 pixels"),
    ("cvat", lambda text: ENTITY + text, "declares a document type or entities"),
    ("cvat", replaced(r'name="[^"]*\.png"', 'name="../../x.png"'), r"no image '\.\./\.\./x.png'"),
    ("yolo", lambda _: "0 30 20 10 10", r"line 1: .*from 0 to 1 \(are they pixels"),
    ("yolo", lambda _: "0 .5 .5 .2 .2 .9", "line 1: 6 values: .*a sixth is a detector's"),
    ("yolo", lambda _: "\n\n\n17 .5 .5 .2 .2", "line 4: class 17: expected one of 2, 0 to 1"),
    ("yolo", lambda _: "17 .5 .5 .2 .2", "line 1: class 17: expected one of 2, 0 to 1"),
    ("yolo", lambda _: "cat .5 .5 .2 .2", "line 1: 'cat .5 .5 .2 .2': expected 'class x y"),
    ("names", replaced(r"train: .*", "train: ../../../etc"), r"states '\.\./\.\./\.\./etc'"),
    ("names", replaced(r"nc: 2", "nc: 77"), "nc: 77, but names 2 classes"),
    ("labelme", lambda text: text.replace("polygon", "linestrip"), "shape_type 'linestrip'"),
    ("labelme", lambda _: "{", "cannot be read as JSON"),
    ("labelme", replaced(r"\[\s*\[\s*[\d.]+", '[["a"'), r"points \[\['a', .*at least 3 of \[x, y"),
]


@pytest.mark.parametrize(("kind", "edit", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_names_the_file(kind, edit, message, tmp_path):
    write, name = FILES[kind]
    root = write(tmp_path / "set")
    read_splits(CocoDataConfig(source=root))
    file = root / name
    before = file.read_text()
    file.write_text(edit(before))
    assert file.read_text() != before
    with pytest.raises(DataError, match=message) as error:
        read_splits(CocoDataConfig(source=root))
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_a_name_that_leads_out_of_the_folder_is_not_read_though_the_file_exists(tmp_path):
    root = write_cvat(tmp_path / "set")
    (tmp_path / "x.png").write_bytes((root / "images" / "Train" / "0.png").read_bytes())
    file = root / "annotations.xml"
    file.write_text(replaced(r'name="[^"]*\.png"', 'name="../../x.png"')(file.read_text()))
    with pytest.raises(DataError, match=r"no image '\.\./\.\./x\.png'"):
        read_splits(CocoDataConfig(source=root))


def test_an_empty_yolo_file_is_an_image_without_objects(tmp_path):
    root = write_yolo(tmp_path)
    before, _ = read_splits(CocoDataConfig(source=root))
    assert before.images[0].objects
    (root / "labels" / "train" / "0.txt").write_text("")
    after, _ = read_splits(CocoDataConfig(source=root))
    assert after.images[0].objects == ()
    assert len(after.images[1].objects) == len(before.images[1].objects) > 0


def test_wrong_annotations_can_be_dropped(tmp_path):
    root = write_yolo(tmp_path)
    (root / "labels" / "train" / "0.txt").write_text("0 30 20 10 10\n0 .5 .5 .2 .2\n")
    train, _ = read_splits(CocoDataConfig(source=root, bad_annotations="drop"))
    assert len(train.images[0].objects) == 1
