import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.errors import ConfigError, DataError, StudentError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.configs.command_line import parse
from pcd_hub.train.configs.segmentation import (
    FINETUNE_SEG,
    SegmentationOptimConfig,
    scaled_schedule,
)
from pcd_hub.train.frozen import compare
from pcd_hub.train.segmentation import finetune as finetune_seg
from tests.train.conftest import (
    check_a_resumed_run,
    check_that_no_step_reads_back,
    run_in_two_processes,
    trace,
)
from tests.train.detection.drawn_coco import draw_coco

TINY = [
    "small",
    "--model=random:test_resnet",
    "--data.num-workers=0",
    "--data.crop-size",
    "32",
    "40",
    "--fcn.channels=16",
    "--optim.global-batch-size=2",
    "--optim.reference-batch-size=2",
    "--run.max-steps=4",
    "--run.log-every-steps=1",
    "--run.checkpoint-every-steps=2",
]
LEARNING = ["--optim.lr=0.05", "--fcn.output-stride=8", "--optim.global-batch-size=4"]


@pytest.fixture
def data(tmp_path) -> str:
    """Bright discs on dark noise, in two shapes of image, with an unlabelled border."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for number in range(count):
            height, width = (41, 54) if number % 2 else (56, 40)
            rows, columns = np.mgrid[:height, :width]
            y, x = rng.uniform(12, 28, 2)
            inside = (rows - y) ** 2 + (columns - x) ** 2 < 100
            mask = inside.astype(np.uint8)
            mask[:, 0] = 255
            image = rng.integers(0, 60, (height, width, 3)) + 170 * inside[..., None]
            for kind, pixels in (("images", image), ("masks", mask)):
                path = tmp_path / "discs" / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    stated = {"classes": ["ground", "disc", "moon"], "ignore_index": 255}
    (tmp_path / "discs" / "classes.json").write_text(json.dumps(stated))
    return f"--data.source={tmp_path / 'discs'}"


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than a tiny run."""
    monkeypatch.setattr(finetune_seg, "draw", lambda _: None)


def test_a_step_reads_nothing_back(data, tmp_path):
    arguments = [*TINY, data, f"--run.output-dir={tmp_path / 'run'}"]
    check_that_no_step_reads_back(finetune_seg.main, arguments)


def test_the_learning_rate_falls_to_nothing():
    whole = scaled_schedule(FINETUNE_SEG["cityscapes_r18_fcn"].optim)
    assert whole.steps == 40_000
    assert whole.learning_rate(0) == 0.01
    assert whole.learning_rate(20_000) == pytest.approx(0.01 * 0.5**0.9)
    assert 0 < whole.learning_rate(39_999) < 1e-6


def test_a_smaller_batch_sees_as_many_pictures_with_a_smaller_learning_rate():
    quarter = scaled_schedule(SegmentationOptimConfig(global_batch_size=4))
    assert (quarter.steps, quarter.peak_lr) == (160_000, 0.0025)
    short = scaled_schedule(SegmentationOptimConfig(global_batch_size=4), max_steps=10)
    assert (short.steps, short.peak_lr) == (10, 0.0025)
    assert short.learning_rate(5) == pytest.approx(quarter.learning_rate(80_000))


def test_every_named_configuration_parses():
    for name, config in FINETUNE_SEG.items():
        assert parse(FINETUNE_SEG, "small", [name]) == (name, config)
    arguments = ["cityscapes_r18_fcn", "--data.crop-size", "512", "1024", "--fcn.norm=frozen"]
    _, changed = parse(FINETUNE_SEG, "small", arguments)
    assert (changed.data.crop_size, changed.fcn.norm) == ((512, 1024), "frozen")
    for name in ("cityscapes_r18_fcn", "voc_r18_fcn", "ade20k_r18_fcn"):
        with pytest.raises(DataError, match="ADEChallengeData2016|VOC2012|cityscapes"):
            finetune_seg.main([name])


def test_a_run_leaves_scores_and_a_picture(data, tmp_path, capsys, passes):
    folder = tmp_path / "run"
    finetune_seg.main([*TINY, data, "--data.num-workers=1", f"--run.output-dir={folder}"])
    assert passes == ["test images"]
    evaluation = Evaluation.load(folder)
    assert evaluation.task == "semantic segmentation, fine-tuned"
    assert (evaluation.dataset, evaluation.images, evaluation.seeds) == ("discs/val", 3, (0,))
    assert evaluation.units == {"mean IoU": "%", "pixel accuracy": "%"}
    assert "4 steps of 2 crops of 32 x 40 at scales 0.5 to 2" in evaluation.protocol
    assert "discs/train (6 images)" in evaluation.protocol
    assert evaluation.table() in capsys.readouterr().out
    row = evaluation.scores["random:test_resnet"]
    (by_class,) = evaluation.details["models"]["random:test_resnet"]["class_iou"]
    assert row["mean IoU"][0] == pytest.approx(100 * np.mean(list(by_class.values())))
    assert {"ground", "disc"} <= set(by_class)
    with Image.open(folder / "pictures" / "overlays.png") as picture:
        assert np.asarray(picture).std() > 10
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["crop_size"] == [32, 40]
    assert [line["step"] for line in trace(folder)] == [0, 1, 2, 3]


@pytest.mark.usefixtures("no_picture")
def test_a_resumed_run_is_the_same_run(data, tmp_path):
    arguments = [*TINY, data, f"--run.output-dir={tmp_path / 'run'}"]
    classes = tmp_path / "discs" / "classes.json"
    check_a_resumed_run(finetune_seg.main, arguments, "--fcn.norm", classes, of_both_splits=True)


@pytest.mark.usefixtures("no_picture")
def test_it_learns(data, tmp_path):
    arguments = [*TINY, *LEARNING, "--run.max-steps=60", "--run.checkpoint-every-steps=60"]
    finetune_seg.main([*arguments, data, f"--run.output-dir={tmp_path / 'run'}"])
    losses = [line["loss"] for line in trace(tmp_path / "run")]
    assert losses[0] == pytest.approx(np.log(3), abs=0.1), "all classes start alike"
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    evaluation = Evaluation.load(tmp_path / "run")
    (by_class,) = evaluation.details["models"]["random:test_resnet"]["class_iou"]
    assert by_class["disc"] > 0.5
    assert evaluation.scores["random:test_resnet"]["pixel accuracy"][0] > 85


@pytest.mark.usefixtures("no_picture")
def test_one_seed_is_one_result_and_seeds_are_joined(data, tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        torch.seed()  # what was drawn before the run does not matter
        arguments = [f"--run.seed={seed}", "--run.max-steps=1", f"--run.output-dir={folder}"]
        finetune_seg.main([*TINY, data, *arguments])
    traces = [trace(folder) for folder in folders]
    assert traces[0] == traces[1] != traces[2]
    compare.main([str(folders[0]), str(folders[2])])
    assert "2 seeds" in capsys.readouterr().out


@pytest.mark.usefixtures("bf16", "no_picture")
def test_mixed_precision(data, tmp_path, monkeypatch):
    seen = []

    class Seen(finetune_seg.FCN):
        def forward(self, images):
            seen.append((self.training, torch.is_autocast_enabled("cpu")))
            return super().forward(images)

    monkeypatch.setattr(finetune_seg, "FCN", Seen)
    finetune_seg.main([*TINY, data, "--run.max-steps=1", f"--run.output-dir={tmp_path / 'run'}"])
    assert set(seen) == {(True, True), (False, True)}
    assert np.isfinite(trace(tmp_path / "run")[0]["loss"])
    evaluation = Evaluation.load(tmp_path / "run")
    assert evaluation.details["hardware"]["mixed_precision"] == "bf16"
    assert "mixed precision bf16" in evaluation.protocol


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--optim.global-batch-size=7"], ConfigError, "has 6 images, fewer than one batch of"),
        (["--data.test-split=test"], DataError, "images/test; .* has train, val"),
        (["--data.source="], ConfigError, "name the images: --data.source DIR"),
        (["--data.crop-size", "0", "9"], ConfigError, "--data.crop-size 0 9: expected 2 values"),
        (["--model=random:resnet81"], StudentError, "no architecture 'resnet81'; did you mean"),
        (["--model=random:test_vit"], StudentError, "cannot build random:test_vit at --fcn.output"),
        (["--data.sorce=x"], ConfigError, "no option '--data.sorce'; did you mean '--data.source'"),
    ],
)
def test_mistakes_are_found_before_the_folder_is_made(data, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        finetune_seg.main([*TINY, data, *arguments, f"--run.output-dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_is_said(data, tmp_path):
    arguments = ["--optim.lr=1e30", f"--run.output-dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match="the loss is .* at step .*; lower --optim.lr"):
        finetune_seg.main([*TINY, data, *arguments])


def test_a_broken_image_is_named(data, tmp_path):
    for path in (tmp_path / "discs" / "images" / "train").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"images/train/\d.png"):
        finetune_seg.main([*TINY, data, f"--run.output-dir={tmp_path / 'run'}"])


def test_the_check_prints_the_labels_and_trains_nothing(data, tmp_path, capsys):
    arguments = [*TINY, data, "--data.check", f"--run.output-dir={tmp_path / 'run'}"]
    found = finetune_seg.main(arguments)
    assert found is not None
    assert found["splits"][0]["counts"] == {"ground": 6, "disc": 6, "moon": 0}
    printed = capsys.readouterr().out
    assert "labels: masks, 3 classes" in printed
    assert "warning: train: classes that do not occur: 1, the first is moon" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_picture")
def test_objects_are_trained_on_as_masks_and_their_format_is_recorded(tmp_path, caplog):
    root = draw_coco(tmp_path / "coco")
    first = root / "images" / "train" / "0.png"
    (root / "images" / "val" / "0.png").write_bytes(first.read_bytes())
    arguments = [*TINY, f"--data.source={root}", f"--run.output-dir={tmp_path / 'run'}"]
    finetune_seg.main(arguments)
    stated = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stated["data"]["format"] == "coco"
    (line,) = [message for message in caplog.messages if "images in train and in val" in message]
    assert "1 (" in line
    evaluation = Evaluation.load(tmp_path / "run")
    (by_class,) = evaluation.details["models"]["random:test_resnet"]["class_iou"]
    assert set(by_class) == {"background", "square", "bar"}
    finetune_seg.main([*arguments, "--run.resume"])  # the format is recognised again


def test_scores_are_those_of_a_confusion_matrix_written_out():
    names = SimpleNamespace(classes=("a", "b", "c"), name="set/val")
    row, by_class = finetune_seg.iou_scores(torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), names)
    assert by_class == pytest.approx({"a": 6 / 9, "b": 3 / 6}), "c occurs nowhere"
    assert row["mean IoU"] == pytest.approx(100 * (6 / 9 + 3 / 6) / 2)
    assert row["pixel accuracy"] == pytest.approx(100 * 9 / 12)
    with pytest.raises(DataError, match="no pixel of set/val has a label"):
        finetune_seg.iou_scores(torch.zeros(3, 3, dtype=torch.long), names)


@pytest.mark.usefixtures("no_picture")
def test_two_processes_train_together_and_count_what_one_counts(data, tmp_path):
    folder = tmp_path / "run"
    arguments = [*TINY, data, *LEARNING, "--run.max-steps=20", f"--run.output-dir={folder}"]
    run_in_two_processes(finetune_seg, arguments, without="draw")
    by_two, together = trace(folder), Evaluation.load(folder)
    assert [line["step"] for line in by_two] == list(range(20))
    assert together.details["hardware"]["processes"] == 2
    assert "batch norm over 2 images" in together.protocol
    (by_class,) = together.details["models"]["random:test_resnet"]["class_iou"]
    assert 0 < by_class["disc"] < 1, "or the same scores would say little"
    finetune_seg.main([*arguments, "--run.resume"])  # the run is finished; one process counts again
    assert trace(folder) == by_two
    alone = Evaluation.load(folder)
    assert alone.scores == together.scores
    assert (
        alone.details["models"]["random:test_resnet"]
        == together.details["models"]["random:test_resnet"]
    )
