"""Mistakes in the labelled images end a run before its first step, in one line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pcd_hub.errors import PCDHubError
from tests.evaluate.drawn_sets import draw_segmentation
from tests.train.conftest import run


def no_masks(folder):
    shutil.rmtree(folder / "masks")
    (folder / "classes.json").unlink()


def one_class(folder):
    for mask in (folder / "masks" / "train").iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)


def ignored(folder):
    for mask in (folder / "masks" / "val").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 255)).save(mask)


def unknown_value(folder):
    mask = folder / "masks" / "val" / "0.png"
    Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 7)).save(mask)


def broken_image(folder):
    (folder / "images" / "train" / "0.png").write_bytes(b"nothing")


def no_classes(folder):
    (folder / "classes.json").write_text(json.dumps({"classes": []}))


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (shutil.rmtree, [], "there is no folder .*--probe-data.source"),
        (no_masks, [], "choose with --probe-data.format|expected"),
        (lambda _: None, ["--probe-data.test-split=dev"], "dev"),
        (lambda _: None, ["--probe-data.test-split=train"], "--probe-data.test-split train"),
        (no_classes, [], "classes.json"),
        (one_class, [], "masks of .*/train have 1 of 2 classes, expected at least 2; check"),
        (ignored, [], "masks of .*/val have 0 of 2 classes, expected at least 1; check"),
        (unknown_value, [], "0.png has the value 7: expected one of 2 classes; correct the mask"),
        (broken_image, [], "0.png"),
    ],
)
def test_a_mistake_in_the_labelled_images_is_one_line(probed, tmp_path, spoil, options, words):
    folder = draw_segmentation(tmp_path / "labelled")
    spoil(folder)
    with pytest.raises(PCDHubError, match=words) as error:
        run([*probed, f"--probe-data={folder}", *options], tmp_path / "run")
    assert str(error.value).startswith(f"--probe-data {folder}: ")
    assert "\n" not in str(error.value)
    assert "--data." not in str(error.value).replace("--probe-data.", "")
    assert not (tmp_path / "run").exists()


def test_test_images_that_are_distilled_on_are_named(probed, labelled, tmp_path, caplog):
    photos = tmp_path / "photos"
    shutil.copytree(labelled / "images" / "train", photos)
    first = min((labelled / "images" / "val").iterdir())
    shutil.copy(first, photos / "again.png")
    options = [*probed, f"--data.source={photos}", "--run.max-steps=1"]
    run(options, tmp_path / "run")
    (said,) = [text for text in caplog.messages if "test images" in text]
    assert said.startswith("1 of 5 test images of --probe-data are also among the images to distil")
    assert f"such as {first} (again.png)" in said
    (photos / "again.png").unlink()
    caplog.clear()
    run(options, tmp_path / "without")
    assert not [text for text in caplog.messages if "test images" in text]


def test_students_of_other_bands_have_no_labelled_images(probed, tmp_path):
    with pytest.raises(PCDHubError, match="images are RGB, found --data.bands gray; leave it out"):
        run([*probed, "--data.bands", "gray"], tmp_path / "run")


def test_a_size_that_the_student_does_not_take_is_named(probed, tmp_path):
    sized = ["--student.arch=test_vit", "--probe-data.image-size=40"]
    with pytest.raises(PCDHubError, match=r"test_vit: .*; set --probe-data.image-size"):
        run([*probed, *sized], tmp_path / "run")
    assert not (tmp_path / "run").exists()
