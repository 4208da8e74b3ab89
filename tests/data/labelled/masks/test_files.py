"""Masks as tools write them: Pascal VOC's, CVAT's, LabelMe's and Roboflow's layouts."""

import json

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.labelled.masks.files import has_masks, open_mask_folder
from pcd_hub.data.labelled.segmentation_set import IGNORE, MaskValueError
from pcd_hub.errors import DataError

VALUES = np.array([[0, 1, 2, 1, 0, 255]] * 4, np.uint8)
PALETTE = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
"""Colours of Pascal VOC."""
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
CLASSES = ("background", "cat", "dog")
NAMES = ("a", "b")


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(path)


def save_mask(path, values=VALUES, mode="P"):
    """Save a mask in gray, with a palette, or in colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode != "L":
        palette = [channel for value in range(256) for channel in PALETTE.get(value, (9, 9, value))]
        image.putpalette(palette)
    (image.convert("RGB") if mode == "RGB" else image).save(path)


def write_voc(root, *, mode="P", lists="labelmap.txt", content=LABELMAP):
    """Write what CVAT exports as "Segmentation mask 1.1", with three images of two splits."""
    for name in (*NAMES, "c"):
        save_image(root / "JPEGImages" / f"{name}.jpg")
        save_mask(root / "SegmentationClass" / f"{name}.png", mode=mode)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("b\na\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("c\n")
    (root / lists).write_text(content)
    return root


def write_labelme(root):
    """Write what labelme2voc writes, once for each split; its SegmentationClass has arrays."""
    for name in NAMES:
        save_image(root / "train" / "JPEGImages" / f"{name}.jpg")
        save_mask(root / "train" / "SegmentationClassPNG" / f"{name}.png")
    (root / "train" / "SegmentationClass").mkdir()
    (root / "train" / "class_names.txt").write_text("background\ncat\ndog\n")
    return root


def write_roboflow(root):
    for name in NAMES:
        save_image(root / "train" / f"{name}.jpg")
        save_mask(root / "train" / f"{name}_mask.png", mode="L")
    content = "Pixel Value, Class\n0, background\n1, cat\n2, dog\n"
    (root / "train" / "_classes.csv").write_text(content)
    return root


def write_split_first(root):
    for name in NAMES:
        save_image(root / "train" / "images" / f"{name}.jpg")
        save_mask(root / "train" / "masks" / f"{name}.png", mode="L")
    content = json.dumps({"classes": CLASSES, "ignore_index": 255})
    (root / "classes.json").write_text(content)
    return root


WRITERS = {
    "palette": write_voc,
    "colours": lambda root: write_voc(root, mode="RGB"),
    "names": lambda root: write_voc(root, lists="class_names.txt", content="\n".join(CLASSES)),
    "labelme": write_labelme,
    "roboflow": write_roboflow,
    "split first": write_split_first,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_layout_gives_the_same_masks(kind, tmp_path):
    root = WRITERS[kind](tmp_path)
    assert has_masks(root, "train")
    found = open_mask_folder(root, "train")
    assert found.classes == CLASSES
    assert sorted(found.image_name(index)[-5:] for index in range(len(found))) == ["a.jpg", "b.jpg"]
    expected = np.where(VALUES == 255, IGNORE, VALUES)
    for index in range(2):
        assert found.pair(index)[1].tolist() == expected.tolist()


def test_the_layout_of_this_package_comes_first(tmp_path):
    root = write_voc(write_split_first(tmp_path))
    save_image(root / "images" / "train" / "own.jpg")
    save_mask(root / "masks" / "train" / "own.png", mode="L")
    found = open_mask_folder(root, "train")
    assert [found.image_name(0)] == [str(root / "images" / "train" / "own.jpg")]
    assert len(found) == 1


def test_a_colour_that_the_list_lacks_is_named(tmp_path):
    write_voc(tmp_path, mode="RGB", content=LABELMAP.replace("0,128,0", "0,129,0"))
    found = open_mask_folder(tmp_path, "train")
    with pytest.raises(
        MaskValueError, match=r"b.png has the colour 0,128,0: expected one of the 4"
    ):
        found.mask(0)


def test_a_palette_is_read_by_its_colours_not_by_its_order(tmp_path):
    lines = LABELMAP.splitlines()
    swapped = "\n".join([lines[0], lines[1], lines[3], lines[2]])
    found = open_mask_folder(write_voc(tmp_path, content=swapped), "train")
    assert found.classes == ("background", "dog", "cat")
    assert found.mask(0)[0].tolist() == [0, 2, 1, 2, 0, IGNORE]


def test_a_mask_may_have_one_bit(tmp_path):
    root = write_split_first(tmp_path)
    for name in NAMES:
        Image.fromarray(VALUES == 1).save(root / "train" / "masks" / f"{name}.png")
    assert open_mask_folder(root, "train").mask(0)[0].tolist() == [0, 1, 0, 1, 0, 0]


def test_classes_may_have_any_values(tmp_path):
    root = write_split_first(tmp_path)
    for name in NAMES:
        save_mask(
            root / "train" / "masks" / f"{name}.png",
            np.where(VALUES == 1, 255, 0).astype(np.uint8),
            mode="L",
        )
    (root / "classes.json").write_text('{"classes": {"255": "crack", "0": "wall"}}')
    found = open_mask_folder(root, "train")
    assert found.classes == ("wall", "crack")
    assert found.mask(0)[0].tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("write", "name", "content", "message"),
    [
        (write_voc, "labelmap.txt", "cat\ndog", r"labelmap.txt has the line 'cat': expected NAME:"),
        (write_voc, "labelmap.txt", "a:1,2,300::", "expected NAME:RED,GREEN,BLUE"),
        (write_voc, "labelmap.txt", "a:1,2,3::\nb:1,2,3::", "the line 'b:1,2,3::': .* of its own"),
        (write_voc, "labelmap.txt", "a:1,2,3::", "lists 1 classes: expected 2 to 254"),
        (write_voc, "ImageSets/Segmentation/train.txt", "../../x", r"lists '\.\./\.\./x', which"),
        (write_roboflow, "train/_classes.csv", "a\nb,1", r"_classes.csv cannot be read \("),
        (
            write_roboflow,
            "train/_classes.csv",
            "a,b\n7,1\n999,2",
            "value 999: expected mask values",
        ),
        (write_roboflow, "train/_classes.csv", f"a,b\n1,{'c' * 200_000}", "cannot be read .field"),
        (write_split_first, "classes.json", "[" * 100_000, "cannot be read .RecursionError"),
        (
            write_split_first,
            "classes.json",
            '{"classes": {"x": "a"}}',
            "cannot be read .ValueError",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(write, name, content, message, tmp_path):
    root = write(tmp_path / "set")
    open_mask_folder(root, "train")
    (root / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        open_mask_folder(root, "train")
    assert "\n" not in str(error.value)
    assert str(root / name) in str(error.value)


def test_vocs_layout_needs_a_list_of_classes_and_of_the_split(tmp_path):
    root = write_voc(tmp_path)
    with pytest.raises(DataError, match=r"there is no .*test.txt \(.* has train.txt, val.txt\)"):
        open_mask_folder(root, "test")
    (root / "labelmap.txt").unlink()
    with pytest.raises(DataError, match=r"names no classes: expected labelmap.txt, .* voc:DIR has"):
        open_mask_folder(root, "train")


def test_what_has_no_partner_is_an_error_or_left_out(tmp_path):
    root = write_voc(tmp_path)
    (root / "SegmentationClass" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b.jpg has no mask of the same name .*1 of 2 have none"):
        open_mask_folder(root, "train")
    found = open_mask_folder(root, "train", strict=False)
    assert len(found) == 1
    assert found.left_out.unlabelled == (str(root / "JPEGImages" / "b.jpg"),)
    (root / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(DataError, match="2 of 2 have none"):
        open_mask_folder(root, "train", strict=False)


def test_a_black_and_white_mask_of_one_bit_is_read_by_its_colours(tmp_path):
    root = write_voc(tmp_path, content="black:0,0,0::\nwhite:255,255,255::\n")
    for name in NAMES:
        Image.fromarray(VALUES == 1).save(root / "SegmentationClass" / f"{name}.png")
    assert open_mask_folder(root, "train").mask(0)[0].tolist() == [0, 1, 0, 1, 0, 0]
