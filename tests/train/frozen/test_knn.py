"""The command line of k-NN and the label-free report, on drawn images."""

import pytest

from pcd_hub.errors import ConfigError, DataError, StudentError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.frozen import knn


def test_neighbours_and_a_linear_classifier(classes, tmp_path, tiny_teacher, capsys, passes):
    out = tmp_path / "out"
    knn.main(
        [
            f"--data.source={classes}",
            "--data.image-size=64",
            "--models",
            "random:test_resnet",
            f"teacher:local-dir:{tiny_teacher}",
            "--run.seeds",
            "0",
            "1",
            f"--teacher.source=local-dir:{tiny_teacher}",
            "--report.num-images=7",
            f"--run.output-dir={out}",
        ]
    )
    name = classes.name
    labels = [f"{name}/train", f"{name}/val", "neighbours"]  # the fit's end is not known before
    assert passes[:3] == [f"random:test_resnet: {what}" for what in labels]
    assert [what for what in passes if what.startswith("teacher: ")] == ["teacher: 7 images"]
    assert passes[-1].endswith("nearest pixels")
    labelled = Evaluation.load(out / "image_classification")
    assert labelled.images == 12
    assert min(labelled.scores["random:test_resnet"]["k-NN top-1"]) > 90
    assert min(labelled.scores["random:test_resnet"]["linear top-1"]) > 90
    free = Evaluation.load(out / "label_free_report")
    assert free.images == 7
    assert list(free.units) == [
        "teacher's nearest pixel in top-5",
        "CKA with teacher",
        "effective rank",
    ]
    assert all(0 <= v <= 100 for row in free.scores.values() for v in row["CKA with teacher"])
    assert capsys.readouterr().out.count("| random:test") == 2


def test_finished_models_are_saved_when_the_next_one_cannot_be_loaded(classes, tmp_path):
    arguments = [f"--data.source={classes}", "--data.image-size=64", "--run.seeds=0"]
    arguments += [f"--run.output-dir={tmp_path / 'out'}"]
    (broken := tmp_path / "broken").mkdir()
    with pytest.raises(StudentError, match="broken"):
        knn.main([*arguments, "--models", "random:test_resnet", f"local-dir:{broken}"])
    table = Evaluation.load(tmp_path / "out" / "image_classification")
    assert list(table.scores) == ["random:test_resnet"]


def test_the_report_needs_no_labels(classes, tmp_path, tiny_teacher):
    arguments = ["--models", "random:test_resnet", "--run.seeds", "0", "--data.image-size=64"]
    arguments += [
        f"--teacher.source=local-dir:{tiny_teacher}",
        f"--run.output-dir={tmp_path / 'out'}",
    ]
    with pytest.raises(ConfigError, match="no images: expected --data.source"):
        knn.main(arguments)
    knn.main([*arguments, f"--report.source={classes / 'train'}"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {".gitignore", "label_free_report"}


def test_splits_with_different_classes_are_rejected(classes, tmp_path):
    (classes / "val" / "light").rename(classes / "val" / "bright")
    with pytest.raises(DataError, match="differ in class 'bright' or in the order of classes"):
        knn.main([f"--data.source={classes}", f"--run.output-dir={tmp_path / 'out'}"])
