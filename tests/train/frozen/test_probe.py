"""``pcd-hub probe``: the labels choose the evaluation, and words become models."""

import pytest

from pcd_hub.errors import ConfigError, WeightError
from pcd_hub.train.frozen import knn, probe, segmentation_probe
from tests.weights.making import exported


@pytest.fixture
def masks(tmp_path):
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (tmp_path / "streets" / kind / split).mkdir(parents=True)
    return str(tmp_path / "streets")


@pytest.fixture
def classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "flowers" / split / "rose").mkdir(parents=True)
    return str(tmp_path / "flowers")


def test_masks_are_probed_and_class_folders_are_classified(masks, classes):
    assert probe.choose(masks, [])[0] is segmentation_probe.main
    assert probe.choose("voc:/data", [])[0] is segmentation_probe.main
    assert probe.choose(classes, [])[0] is knn.main


def test_masks_in_another_layout_and_objects_of_a_stated_format_are_probed(tmp_path, classes):
    (tmp_path / "voc" / "SegmentationClass").mkdir(parents=True)
    assert probe.choose(str(tmp_path / "voc"), [])[0] is segmentation_probe.main
    assert probe.choose(classes, ["--data.format=yolo"])[0] is segmentation_probe.main
    assert probe.choose(classes, ["--data.format", "yolo"])[0] is segmentation_probe.main


def test_a_data_set_of_the_hub_has_masks_if_their_classes_are_counted():
    assert probe.choose("hf:org/x", ["--data.num_classes=3"])[0] is segmentation_probe.main
    assert probe.choose("hf:org/x", ["--data.label-column", "kind"])[0] is knn.main


def test_models_and_options_are_passed_on(masks, tmp_path, monkeypatch, capsys):
    received = []
    monkeypatch.setattr(segmentation_probe, "main", received.extend)
    run = tmp_path / "run"
    exported(run / "export")
    probe.main([masks, "random:resnet18", str(run), "--run.seeds", "0"])
    models = ["--models", "random:resnet18", f"local-dir:{run / 'export'}"]
    assert received == [f"--data.source={masks}", *models, "--run.seeds", "0"]
    assert f"{masks}: masks, so a linear segmentation probe" in capsys.readouterr().out


def test_another_name_of_the_test_split_is_found(classes, masks, capsys):
    assert probe.named_test_split(classes, []) == ["--data.test-split=test"]
    assert "there is no split val or valid or validation, so test" in capsys.readouterr().out
    assert probe.named_test_split(classes, ["--data.test_split", "other"]) == []
    assert probe.named_test_split(masks, []) == []


def test_a_folder_without_labels_or_weight_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no labelled images: expected pcd-hub probe DATA"):
        probe.main([])
    with pytest.raises(ConfigError, match=r"has no labels: expected images/SPLIT with masks/SPLIT"):
        probe.main([str(tmp_path)])
    with pytest.raises(ConfigError, match="no folder /no/such: expected labelled images"):
        probe.main(["/no/such"])
    with pytest.raises(WeightError, match="did the run finish"):
        probe.model_name(str(tmp_path))
