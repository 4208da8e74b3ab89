"""Test images are looked for in the images that a weight's record names."""

import dataclasses
import shutil

import pytest

from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.data.sources.open import open_source
from pcd_hub.errors import DataError
from pcd_hub.train.worth import distilled
from pcd_hub.weights.record import WeightRecord
from tests.evaluate.drawn_sets import draw_segmentation


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Check a weight whose record names a source; its record is made up."""
    test = open_segmentation(str(draw_segmentation(tmp_path / "discs")), "val")

    def call(source, fingerprint):
        data = {"source": source, "fingerprint": fingerprint}
        record = dataclasses.replace(WeightRecord.trial("resnet18"), data=data)
        monkeypatch.setattr(distilled, "records", lambda _: {"mine": record})
        (sentence,) = distilled.check_not_distilled_on(test, {"mine": "x"}, (), tmp_path)
        return sentence

    return call


def test_recorded_images_are_compared(check, tmp_path):
    pool = tmp_path / "pool"
    shutil.copytree(tmp_path / "discs" / "images" / "train", pool)
    recorded = f"{open_source(str(pool)).fingerprint()}, 0.02 held out (2 images)"
    assert check(str(pool), recorded).startswith("none of 5 test images is among the 12 of")
    shutil.copy(tmp_path / "discs" / "images" / "val" / "0.png", pool)
    assert "here is not the set of images that its record" in check(str(pool), recorded)
    with pytest.raises(DataError, match="1 of 5 test images are among"):
        check(str(pool), open_source(str(pool)).fingerprint())


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("scenes:100", "mine was distilled on generated scenes"),
        ("hf:org/photos", "distilled on test images: hf:org/photos is not read for this"),
        ("/no/such", "/no/such is not on this machine; name the images with --distilled-on"),
        ([], "its images are not recorded on this machine"),
    ],
)
def test_what_is_not_compared_is_stated(check, source, sentence):
    assert sentence in check(source, "")
