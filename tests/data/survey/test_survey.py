"""A survey counts what is there, and refuses what cannot be trained on before the first step."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.scenes import render_scene
from pcd_hub.data.sources.open import open_source
from pcd_hub.data.survey.result import FEW_IMAGES, MIN_IMAGES
from pcd_hub.data.survey.survey import survey
from pcd_hub.errors import DataError


def scene(number, size=(96, 96)):
    return Image.fromarray(render_scene(0, number, size=96).image).resize(size)


@pytest.fixture
def photos(tmp_path):
    """Twelve different JPEGs of 120 x 96 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        scene(number, (120, 96)).save(folder / f"{number:02}.jpg", quality=90)
    return folder


def look(folder, **options):
    return survey(open_source(str(folder)), **options)


def test_sizes_and_copies_are_counted(photos):
    scene(20, (200, 150)).save(photos / "large.png")
    shutil.copy(photos / "03.jpg", photos / "same_03.jpg")
    shutil.copy(photos / "03.jpg", photos / "again_03.jpg")
    Image.open(photos / "05.jpg").save(photos / "small_05.jpg", quality=60)
    found = look(photos)
    assert (found.num_images, found.num_sampled, found.num_compared) == (16, 16, 16)
    assert (found.smallest_side, found.short_side, found.largest_side) == (96, 96, 150)
    assert (found.num_exact_copies, found.num_near_copies, found.num_broken) == (2, 1, 0)
    assert {frozenset(pair) for pair in found.examples} >= {frozenset({"05.jpg", "small_05.jpg"})}
    text = found.describe()
    assert text.startswith("16 images, short side 96 px (96 to 150), 2 exact copies, 1 near copies")
    assert "03.jpg" in text
    assert json.loads(json.dumps(found.as_json()))["num_images"] == 16


def test_a_sample_is_named_as_such(photos):
    found = look(photos, max_images=8)
    assert (found.num_sampled, found.num_compared) == (8, 12)
    assert "(sample of 8: 96 to 96)" in found.describe()


def test_too_few_images_are_refused_before_any_is_read(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"not read")
    message = f"--data.source has 3 images: expected at least {MIN_IMAGES}, and {FEW_IMAGES} or"
    with pytest.raises(DataError, match=message):
        look(tmp_path)


def test_one_image_many_times_is_refused(tmp_path):
    scene(0).save(tmp_path / "000.png")
    for number in range(1, 100):
        shutil.copy(tmp_path / "000.png", tmp_path / f"{number:03}.png")
    with pytest.raises(DataError, match="^100 files hold 1 distinct image: expected at least 8"):
        look(tmp_path)


def test_only_broken_files_are_refused_with_the_first_reason(photos):
    for path in photos.iterdir():
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"^none of 12 images can be decoded, .*\.jpg \(OSError: "):
        look(photos)


def test_more_broken_images_than_a_run_accepts_are_refused(photos):
    (photos / "03.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match="1 of 12 images cannot be read, expected at most 1%"):
        look(photos)


def test_a_few_broken_images_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(150):
        pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((32, 24)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "077.png").write_bytes(b"<html>")
    found = look(tmp_path)
    assert found.num_broken == 1
    assert "1 of 150 images cannot be decoded, and are skipped: " in found.cautions()[0]
    assert "077.png (UnidentifiedImageError" in found.cautions()[0]
