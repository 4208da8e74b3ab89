import base64
import io

import numpy as np
import pytest
from PIL import Image

from pcd_hub.report.page.content import read_report
from pcd_hub.report.page.pictures import PictureError, embed, feature_rows, receptive_field_row
from tests.report.page.making import FEATURES, finished_run


@pytest.fixture
def report(tmp_path):
    return read_report(finished_run(tmp_path / "run"))


def opened(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))


def test_the_sheet_is_cut_into_a_row_for_each_image(report):
    rows = feature_rows(report)
    assert [row.label for row in rows] == ["a.jpg", "b.jpg"]
    for row in rows:
        captions = [picture.caption for picture in row.pictures]
        assert captions == ["image", "random weights", "distilled student", "teacher"]
    assert rows[1].pictures[2].alt == "Feature map of distilled student for b.jpg, as colours"


def test_a_feature_map_has_one_pixel_for_each_location(report):
    sheet = np.asarray(Image.open(report.folder / FEATURES.path))
    first = feature_rows(report)[0].pictures
    assert opened(first[1]).size == (4, 4)
    assert (np.asarray(opened(first[1])) == sheet[32:64:8, :32:8]).all()
    assert first[1].pixelated
    assert opened(first[0]).size == (32, 32)
    assert opened(first[0]).format == "JPEG"


def test_the_receptive_field_has_its_size_in_words(report):
    row = receptive_field_row(report)
    assert row is not None
    assert [picture.caption for picture in row.pictures] == [
        "random weights: half of it in a square of 50 % of the side",
        "distilled student: half of it in a square of 25 % of the side",
    ]


def test_a_wide_picture_is_reduced(tmp_path):
    Image.new("RGB", (2400, 100)).save(tmp_path / "wide.png")
    assert opened(embed(tmp_path / "wide.png", alt="x")).size == (1200, 50)


@pytest.mark.parametrize("size", [(63, 128), (64, 126)])
def test_a_sheet_of_another_shape_is_refused(report, size):
    Image.new("RGB", size).save(report.folder / FEATURES.path)
    with pytest.raises(PictureError, match="features.png is no grid of 4 x 2 pictures"):
        feature_rows(report)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no picture"),
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: Image.new("RGB", (8, 8)).save(file, "GIF"),
        lambda file: Image.new("1", (9000, 9000)).save(file),
        lambda file: file.unlink(),
    ],
    ids=["text", "cut", "a GIF", "large", "missing"],
)
def test_what_is_no_picture_is_refused(tmp_path, damage):
    file = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(file)
    damage(file)
    with pytest.raises(PictureError, match="a.png cannot be shown: "):
        embed(file, alt="x")
