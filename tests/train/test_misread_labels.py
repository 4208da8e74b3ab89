"""Labelled data that used to be read silently as something else."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.labelled.classification import open_classification
from pcd_hub.data.labelled.masks.objects import DrawingRule, draw_objects
from pcd_hub.errors import DataError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train import linear_classification
from pcd_hub.train.configs.detection import CocoDataConfig
from pcd_hub.train.detection import detect
from pcd_hub.train.detection.splits import read_splits, resolve_format
from pcd_hub.train.frozen import compare, knn, segmentation_probe
from pcd_hub.train.segmentation import finetune
from tests.evaluate.drawn_sets import draw_classes, draw_segmentation
from tests.train.detection.drawn_coco import draw_coco, read
from tests.train.detection.drawn_formats import (
    labelme,
    save,
    save_image,
    shape,
    write_cvat,
    write_voc,
    write_yolo,
)

PROBE = ["--data.image-size=64", "--probe.steps=2", "--run.seeds", "0"]
FINETUNE = [
    *("small", "--model=random:test_resnet", "--data.num-workers=0", "--data.crop-size", "32"),
    *("40", "--fcn.channels=8", "--optim.global-batch-size=2", "--run.max-steps=1"),
]
DETECT = [
    *("--model=random:test_resnet", "--run.max-steps=1", "--optim.global-batch-size=1"),
    *("--detector.short-sides", "40", "--detector.max-long-side=80", "--detector.channels=8"),
    "--data.num-workers=0",
]


def test_folders_of_images_and_labels_are_no_classes(tmp_path):
    root = write_yolo(tmp_path / "yolo")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / split).mkdir(exist_ok=True)
            (root / kind / split).rename(tmp_path / split / kind)
    with pytest.raises(DataError, match="folders images, labels, which are not classes; for masks"):
        open_classification(str(tmp_path), "train")


def test_a_class_without_training_image_is_named(tmp_path):
    data = draw_classes(tmp_path / "tones")
    shutil.rmtree(data / "train" / "light")
    (data / "train" / "light").mkdir()
    for main in (knn.main, linear_classification.main):
        with pytest.raises(DataError, match=r"tones/train has no image of class 'light' \(1 of 2"):
            main([f"--data.source={data}", f"--run.output-dir={tmp_path / 'out'}"])


def test_names_with_spaces_in_a_list_of_pascal_voc(tmp_path):
    names = ["IMG", "IMG (1)", "scan 1", "left -1"]
    for name in names:
        save_image(tmp_path / "JPEGImages" / f"{name}.png", (8, 8))
        content = (
            "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax>"
            "<ymax>4</ymax></bndbox></object></annotation>"
        )
        save(tmp_path / "Annotations" / f"{name}.xml", content)
    lists = tmp_path / "ImageSets" / "Main"
    save(lists / "train.txt", "IMG  1\nIMG (1)\nscan 1\n")
    save(lists / "val.txt", "left -1\nIMG -1\nIMG (1)  0\n")
    train, val = read_splits(CocoDataConfig(source=tmp_path, format="voc"))
    assert [image.path.stem for image in train.images] == ["IMG", "IMG (1)", "scan 1"]
    assert [image.path.stem for image in val.images] == ["left -1", "IMG (1)"]


def test_two_entries_for_one_image_of_cvat_are_named(tmp_path):
    file = write_cvat(tmp_path) / "annotations.xml"
    content = file.read_text()
    first = content[content.index("<image ") : content.index("</image>") + len("</image>")]
    file.write_text(content.replace(first, first + first))
    with pytest.raises(DataError, match="several entries for .*: expected 1; join them"):
        read_splits(CocoDataConfig(source=tmp_path))


def test_an_outline_may_cross_the_border(tmp_path):
    for split in ("train", "val"):
        save_image(tmp_path / "images" / split / "0.png", (64, 64))
        save(tmp_path / "labels" / split / "0.txt", "0 0.9 0.4 1.03 0.5 0.96 0.7 0.83 0.6")
    save(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [a]\n")
    train, _ = read_splits(CocoDataConfig(source=tmp_path))
    (each,) = train.images[0].objects
    left, top, width, height = each.box
    assert (left, top, left + width, top + height) == pytest.approx((53.12, 25.6, 64, 44.8))


def test_a_rectangle_of_labelme_may_have_four_points(tmp_path):
    corners = [(2, 3), (12, 3), (12, 9), (2, 9)]
    for split, points in (("train", corners), ("val", [corners[0], corners[2]])):
        save_image(tmp_path / split / "0.png", (32, 32))
        shapes = [shape("a", points, "rectangle")]
        save(tmp_path / split / "0.json", labelme("0.png", shapes, (32, 32)))
    four, two = read_splits(CocoDataConfig(source=tmp_path, format="labelme"))
    assert four.images[0].objects[0].box == two.images[0].objects[0].box == (2, 3, 10, 6)
    for split in ("train", "val"):
        shapes = [shape("a", corners[:3], "rectangle")]
        save(tmp_path / split / "0.json", labelme("0.png", shapes, (32, 32)))
    with pytest.raises(DataError, match=r"no object .*; 2 cannot be read, .*of a rectangle: expec"):
        read_splits(CocoDataConfig(source=tmp_path, format="labelme"))


def test_an_area_of_0_is_that_of_the_outline(tmp_path):
    def square(number, side):
        points = [4, 4, 4 + side, 4, 4 + side, 4 + side, 4, 4 + side]
        ids = {"id": number, "image_id": 1, "category_id": number}
        return ids | {"bbox": [4, 4, side, side], "segmentation": [points], "area": 0}

    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": 32, "height": 32}],
        "categories": [{"id": 1, "name": "nucleus"}, {"id": 2, "name": "cell"}],
        "annotations": [square(1, 8), square(2, 20)],
    }
    for split in ("train", "val"):
        save_image(tmp_path / "images" / split / "0.png", (32, 32))
        save(tmp_path / "annotations" / f"instances_{split}.json", json.dumps(content))
    train, _ = read_splits(CocoDataConfig(source=tmp_path))
    assert [each.area for each in train.images[0].objects] == [64, 400]
    drawn = draw_objects(train, DrawingRule(), name="x")
    assert np.bincount(drawn.mask(0).ravel()).tolist()[1:] == [64, 336]


def test_test_images_that_were_trained_on_are_told_by_their_files(tmp_path):
    found = {}
    for name, root in (("yolo", write_yolo(tmp_path / "yolo")), ("coco", None)):
        source = root or draw_coco(tmp_path / "coco", train=2, val=2)
        more = []
        if root is None:
            content = read(source, "train")
            save(source / "annotations" / "instances_val.json", json.dumps(content))
            more = [f"--data.{s}-images={source / 'images' / 'train'}" for s in ("train", "test")]
            more += [
                f"--data.{s}-annotations={source / 'annotations' / f'instances_{f}.json'}"
                for s, f in (("train", "train"), ("test", "val"))
            ]
        where = [f"--data.source={source}"] if root else more
        out = tmp_path / f"run_{name}"
        detect.main([*DETECT, *where, "--detector.masks=no", f"--run.output-dir={out}"])
        found[name] = "it was trained on" in Evaluation.load(out).protocol
    assert found == {"yolo": False, "coco": True}


@pytest.mark.parametrize("change", ["all ignored", "one class"])
def test_masks_without_two_classes_train_nothing(tmp_path, change):
    data = draw_segmentation(tmp_path / "discs")
    for file in (data / "masks" / "train").iterdir():
        mask = np.asarray(Image.open(file))
        Image.fromarray(np.full_like(mask, 255 if change == "all ignored" else 0)).save(file)
    found = "0 of 2" if change == "all ignored" else "1 of 2"
    out = f"--run.output-dir={tmp_path / 'out'}"
    with pytest.raises(DataError, match=f"masks have {found} classes, expected at least 2"):
        segmentation_probe.main(
            [f"--data.source={data}", *PROBE, "--models=random:test_resnet", out]
        )
    with pytest.raises(DataError, match=f"of discs/train have {found} classes, expected at least"):
        finetune.main([*FINETUNE, f"--data.source={data}", out])
    assert not (tmp_path / "out").exists()


def test_a_value_that_is_a_class_cannot_be_ignored(tmp_path):
    data = draw_segmentation(tmp_path / "discs")
    classes = '{"classes": {"0": "ground", "255": "disc"}, "ignore_index": 255}'
    (data / "classes.json").write_text(classes)
    with pytest.raises(DataError, match="ignore_index 255 is the value of class 'disc'"):
        segmentation_probe.main([f"--data.source={data}", *PROBE])


def test_a_class_without_training_pixel_is_named_once(tmp_path, caplog):
    data = draw_segmentation(tmp_path / "discs")
    (data / "classes.json").write_text('{"classes": ["ground", "disc", "sky"]}')
    models = ["--models", "random:test_resnet", "random:test_efficientnet"]
    out = f"--run.output-dir={tmp_path / 'out'}"
    segmentation_probe.main([f"--data.source={data}", *PROBE, *models, out])
    (line,) = [text for text in caplog.messages if "have no pixel of" in text]
    assert "no pixel of 1 classes, such as 'sky'" in line


def test_equal_images_in_both_splits_are_logged_by_every_evaluation(tmp_path, caplog):
    discs, tones = draw_segmentation(tmp_path / "discs"), draw_classes(tmp_path / "tones")
    for kind in ("images", "masks"):
        shutil.copy(discs / kind / "train" / "0.png", discs / kind / "val" / "0.png")
    shutil.copy(tones / "train" / "dark" / "0.png", tones / "val" / "dark" / "0.png")
    common = ["--models=random:test_resnet", f"--run.output-dir={tmp_path / 'out'}"]
    segmentation_probe.main([f"--data.source={discs}", *PROBE, *common])
    knn.main(
        [
            f"--data.source={tones}",
            "--data.image-size=64",
            "--run.seeds",
            "0",
            common[0],
            f"--run.output-dir={tmp_path / 'out2'}",
        ]
    )
    lines = [line for line in caplog.messages if "images in train and in val: 1 (" in line]
    assert len(lines) == 1
    assert "images in tones/train and in tones/val: 1 (" in caplog.text


def test_a_broken_test_image_is_found_before_the_first_step(tmp_path):
    data = draw_segmentation(tmp_path / "discs")
    mask = np.asarray(Image.open(data / "masks" / "val" / "3.png")).copy()
    mask[0, 0] = 7
    Image.fromarray(mask).save(data / "masks" / "val" / "3.png")
    with pytest.raises(DataError, match=r"3.png has the value 7"):
        finetune.main([*FINETUNE, f"--data.source={data}", f"--run.output-dir={tmp_path / 'out'}"])
    coco = draw_coco(tmp_path / "coco", train=2, val=2)
    last = max((coco / "images" / "val").iterdir())
    last.write_bytes(last.read_bytes()[:-40])
    out = f"--run.output-dir={tmp_path / 'out'}"
    with pytest.raises(DataError, match=last.name):
        detect.main([*DETECT, f"--data.source={coco}", "--detector.masks=no", out])
    assert not (tmp_path / "out").exists()


def test_results_on_changed_masks_are_not_compared(tmp_path):
    data = draw_segmentation(tmp_path / "discs")
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, model in zip(runs, ("random:test_resnet", "random:test_efficientnet"), strict=True):
        finetune.main(
            [*FINETUNE, f"--model={model}", f"--data.source={data}", f"--run.output-dir={run}"]
        )
        with (data / "masks" / "val" / "0.png").open("ab") as file:
            file.write(b"another")
    with pytest.raises(DataError, match="different images"):
        compare.main(list(map(str, runs)))


def test_a_file_where_a_folder_belongs_is_named(tmp_path):
    file = write_voc(tmp_path) / "data.yaml"
    file.write_text("names: [a]")
    with pytest.raises(DataError, match="data.yaml is a file: expected the folder of the data"):
        resolve_format(CocoDataConfig(source=file))


def test_names_of_classes_may_lie_beside_the_labels_of_yolo(tmp_path):
    root = write_yolo(tmp_path)
    (root / "data.yaml").unlink()
    save(root / "labels" / "train" / "classes.txt", "bar\nsquare\n")
    save(root / "labels" / "val" / "classes.txt", "bar\nsquare\n")
    for split in read_splits(CocoDataConfig(source=root)):
        assert [*split.categories.values()] == ["bar", "square"]
