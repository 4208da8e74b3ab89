"""The probe from Python: three lines, no command line."""

import json

import pytest

from pcd_hub.errors import DataError, StudentError
from pcd_hub.evaluate import SegmentationProbe, open_segmentation, segmentation_probe
from pcd_hub.evaluate.results import Evaluation


@pytest.fixture
def probe(segmentation):
    train, test = (open_segmentation(str(segmentation), split) for split in ("train", "val"))
    return SegmentationProbe(train, test, image_size=64, steps=60, batch_size=4)


def test_a_model_is_scored_by_name_and_joins_a_table(probe, tmp_path):
    scores = probe.score("random:test_resnet", seeds=(0, 1))
    assert 60 < min(scores.metrics["mean IoU"]) < max(scores.metrics["pixel accuracy"]) <= 100
    assert [mask.shape for mask in scores.predictions] == [
        probe.test.mask(n).shape for n in range(5)
    ]
    table = probe.empty_table(seeds=(0, 1)).with_scores(scores)
    table.save(tmp_path / "runs" / "probe")
    assert Evaluation.load(tmp_path / "runs" / "probe") == table
    assert "60 steps of 4, AdamW 0.003" in table.protocol
    assert "64 x 64" in table.protocol


def test_the_table_states_its_version_and_its_images(probe, segmentation, monkeypatch):
    table = probe.empty_table()
    assert table.protocol_version == 1
    monkeypatch.setattr(segmentation_probe, "PROTOCOL_VERSION", 7)
    assert probe.empty_table().protocol_version == 7
    splits = ("train", "val")
    again = SegmentationProbe(*(open_segmentation(str(segmentation), name) for name in splits))
    assert again.empty_table().data_sha256 == table.data_sha256
    with (segmentation / "images" / "train" / "0.png").open("ab") as image:
        image.write(b"more")
    assert again.empty_table().data_sha256 != table.data_sha256


def test_stages_that_do_not_exist_are_an_error(segmentation, probe):
    deep = SegmentationProbe(probe.train, probe.test, image_size=64, num_stages=9)
    with pytest.raises(StudentError, match=r"cannot give these stages of \(64, 64\) pixels"):
        deep.score("random:test_resnet")


@pytest.mark.parametrize("classes", [["disc", "ground"], ["ground", "disc", "sky"]])
def test_splits_with_other_classes_are_refused(segmentation, classes):
    train = open_segmentation(str(segmentation), "train")
    (segmentation / "classes.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(DataError, match="differ in class 'sky'|in the order of classes"):
        SegmentationProbe(train, open_segmentation(str(segmentation), "val"))
