"""Pictures of the run's own images, and the report at its end."""

import json

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.scenes import render_scene
from pcd_hub.train.results import pictures, report
from pcd_hub.train.results.pictures import picture_size
from tests.train.conftest import run

SHORT = ["--run.max-steps=2", "--run.no-store"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        image = Image.fromarray(render_scene(3, number, size=64).image)
        image.save(folder / f"{number:02}.png")
    return folder


def notes_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_report_shows_features_of_held_out_images_which_are_not_exported(
    tiny, tmp_path, photos
):
    options = [f"--data.source={photos}", "--data.held-out=0.1", *SHORT]
    folder = run([*tiny, *options], tmp_path / "run")
    features = notes_of(folder)["features"]
    assert features["images"] == "held-out images, 320 x 320 px"
    assert features["rows"] == ["image", "random weights", "distilled student", "teacher"]
    names = features["columns"]
    with Image.open(folder / "pictures" / "features.png") as sheet:
        assert sheet.size == (320 * len(names), 4 * 320)
        shown = np.asarray(sheet.crop((0, 0, 320, 320)).resize((56, 56), Image.Resampling.BOX))
    with Image.open(photos / names[0]) as image:
        middle = np.asarray(image.crop((4, 4, 60, 60)))
    assert np.abs(shown.astype(int) - middle).mean() < 10
    receptive = notes_of(folder)
    assert receptive["receptive_field"]["columns"] == ["random weights", "distilled student"]
    assert all(0 < side <= 1 for side in receptive["receptive_sides"])
    assert not (folder / "export" / "features.png").exists()
    page = (folder / "report.html").read_text()
    assert "Feature maps on held-out images, 320 x 320 px." in page
    assert f'alt="Image {names[0]}"' in page
    assert "report.html" in {path.name for path in folder.iterdir()}


def test_images_of_other_bands_have_pictures_too(tiny, tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 4), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image, "RGBA").save(tmp_path / "images" / f"{number}.png")
    bands = ["--data.bands", "red", "green", "blue", "nir"]
    folder = run([*tiny, f"--data.source={tmp_path / 'images'}", *bands, *SHORT], tmp_path / "run")
    assert notes_of(folder)["features"]["images"] == "training images, 320 x 320 px"


@pytest.mark.parametrize(
    ("place", "left"),
    [
        ((pictures, "_own_images"), {"report.html", "report.md"}),
        ((report, "write_report"), set()),
    ],
)
def test_a_report_that_fails_does_not_lose_the_run(
    tiny, tmp_path, monkeypatch, caplog, capsys, place, left
):
    def fails(*_):
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(*place, fails)
    folder = run([*tiny, *SHORT], tmp_path / "run")
    assert (folder / "export" / "model.safetensors").exists()
    assert {path.name for path in folder.iterdir()} & {"report.html", "report.md"} == left
    assert "out of memory" in caplog.text
    assert "\nmore" not in caplog.text
    assert "load it anywhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "larger"), [(96, (320, 320)), ((64, 96), (320, 480)), (448, (448, 448))]
)
def test_the_pictures_have_the_shape_of_a_view_and_large_enough_maps(size, larger):
    assert picture_size(size) == larger
