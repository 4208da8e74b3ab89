"""The command line of the segmentation probe, on drawn images."""

import numpy as np
import pytest
from PIL import Image

from pcd_hub.errors import ConfigError, DataError, StudentError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.configs.probes import LINEAR_SEG
from pcd_hub.train.frozen import segmentation_probe
from tests.weights.making import exported


def test_the_probe_of_every_model_is_written(segmentation, tmp_path, capsys, passes):
    export = exported(tmp_path / "export")
    out = tmp_path / "out"
    segmentation_probe.main(
        [
            f"--data.source={segmentation}",
            "--data.image-size=64",
            "--probe.steps=60",
            "--probe.batch-size=4",
            "--models",
            "random:test_resnet",
            f"local-dir:{export}",
            "--run.seeds",
            "0",
            "1",
            f"--run.output-dir={out}",
        ]
    )
    assert sum("training the probe" in what for what in passes) == 4, "two models, two seeds"
    table = Evaluation.load(out)
    assert table.seeds == (0, 1)
    assert table.images == 5
    assert list(table.scores) == ["random:test_resnet", f"local-dir:{export}"]
    for row in table.scores.values():
        assert 60 < min(row["mean IoU"]) < max(row["pixel accuracy"]) <= 100
    assert len(set(table.scores["random:test_resnet"]["mean IoU"])) == 2, (
        "random weights differ by seed"
    )
    by_class = table.details["models"][f"local-dir:{export}"]["class_iou"][0]
    assert np.mean([by_class["ground"], by_class["disc"]]) == pytest.approx(
        table.scores[f"local-dir:{export}"]["mean IoU"][0] / 100
    )
    assert set(table.weights_sha256) == {f"local-dir:{export}"}
    assert "random:test_resnet" in table.command
    assert "| random:test" in capsys.readouterr().out
    with Image.open(out / "pictures" / "overlays.png") as picture:
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert len(colours) > 50


def test_the_check_prints_the_labels_and_computes_nothing(segmentation, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [f"--data.source={segmentation}", "--data.check", f"--run.output-dir={out}"]
    (found,) = segmentation_probe.main(arguments)
    assert found["splits"][1]["counts"] == {"ground": 5, "disc": 5}
    assert "labels: masks, 2 classes" in capsys.readouterr().out
    assert not out.exists()


def test_mistakes_are_found_before_anything_is_computed(segmentation, tmp_path):
    out = tmp_path / "out"
    arguments = [f"--run.output-dir={out}", "--models", "random:test_resnet"]
    with pytest.raises(ConfigError, match="name the images: --data.source DIR"):
        segmentation_probe.main(arguments)
    with pytest.raises(DataError, match="images/test; .* has train, val"):
        segmentation_probe.main(
            [f"--data.source={segmentation}", "--data.test-split=test", *arguments]
        )
    with pytest.raises(ConfigError, match="--data.test-split train is the training split"):
        segmentation_probe.main(
            [f"--data.source={segmentation}", "--data.test-split=train", *arguments]
        )
    with pytest.raises(ConfigError, match="--probe.label-stride 0: expected an integer"):
        segmentation_probe.main(
            [f"--data.source={segmentation}", "--probe.label-stride=0", *arguments]
        )
    with pytest.raises(ConfigError, match="expected at least one, and none twice"):
        segmentation_probe.main([f"--data.source={segmentation}", *arguments, "random:test_resnet"])
    assert not out.exists()


def test_finished_models_are_saved_when_the_next_one_fails(segmentation, tmp_path):
    arguments = [f"--data.source={segmentation}", "--data.image-size=64", "--probe.steps=2"]
    arguments += ["--run.seeds", "0", f"--run.output-dir={tmp_path / 'out'}"]
    (broken := tmp_path / "broken").mkdir()
    with pytest.raises(StudentError, match="broken"):
        segmentation_probe.main(
            [*arguments, "--models", "random:test_resnet", f"local-dir:{broken}"]
        )
    assert list(Evaluation.load(tmp_path / "out").scores) == ["random:test_resnet"]
    arguments[-1] = f"--run.output-dir={tmp_path / 'none'}"
    with pytest.raises(StudentError, match="broken"):
        segmentation_probe.main([*arguments, "--models", f"local-dir:{broken}"])
    assert not (tmp_path / "none").exists(), "nothing was written"
    (tmp_path / "none").mkdir()
    with pytest.raises(StudentError, match="broken"):
        segmentation_probe.main([*arguments, "--models", f"local-dir:{broken}"])
    assert [*(tmp_path / "none").iterdir()] == [], "it existed before"
    arguments[-1] = f"--run.output-dir={tmp_path / 'out'}"
    with pytest.raises(ConfigError, match="out is not empty; name another --run.output-dir$"):
        segmentation_probe.main([*arguments, "--models", "random:test_resnet"])


def test_the_named_configurations_parse(tmp_path):
    for name in ("ade20k", "voc", "cityscapes"):
        with pytest.raises(DataError, match="ADEChallengeData2016|VOC2012|cityscapes"):
            segmentation_probe.main([name, f"--run.output-dir={tmp_path / 'out'}"])
    assert list(LINEAR_SEG) == ["folder", "ade20k", "voc", "cityscapes"]
