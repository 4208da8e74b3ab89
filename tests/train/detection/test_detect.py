import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pcd_hub.errors import CheckpointError, ConfigError, DataError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train import launch
from pcd_hub.train.configs.command_line import parse
from pcd_hub.train.configs.detection import DETECT, ScheduleConfig
from pcd_hub.train.detection import detect
from pcd_hub.train.detection.batches import detection_batches
from pcd_hub.train.detection.precise_bn import recompute_batch_norm_statistics
from pcd_hub.train.detection.schedule import scaled_schedule
from pcd_hub.train.detection.scores import deviations, protocol
from pcd_hub.weights import store
from tests.train.conftest import check_a_resumed_run, run_in_two_processes, trace
from tests.train.detection.drawn_coco import draw_coco
from tests.weights.making import filled

TINY = [
    "small",
    "--model=random:test_resnet",
    "--data.num-workers=0",
    "--detector.short-sides",
    "40",
    "48",
    "--detector.max-long-side=80",
    "--detector.channels=16",
    "--detector.train-proposals=20",
    "--detector.test-proposals=20",
    "--detector.head-samples=16",
    "--optim.global-batch-size=2",
    "--optim.reference-batch-size=2",
    "--run.max-steps=4",
    "--run.log-every-steps=1",
    "--run.checkpoint-every-steps=2",
]


@pytest.fixture
def data(tmp_path) -> str:
    return f"--data.source={draw_coco(tmp_path / 'drawn')}"


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than a tiny run."""
    monkeypatch.setattr(detect, "save_detections", lambda *_: None)


def test_the_schedules_are_detectron2s():
    one, two = (scaled_schedule(DETECT[f"coco_r18_fpn_{n}x"].optim) for n in (1, 2))
    assert (one.steps, one.drops) == (90_000, (60_000, 80_000))
    assert (two.steps, two.drops) == (180_000, (120_000, 160_000))
    assert one.learning_rate(0) == pytest.approx(0.02 * 0.001)
    assert one.learning_rate(500) == pytest.approx(0.02 * (0.5 * 0.001 + 0.5))
    for step, lr in ((1000, 0.02), (59_999, 0.02), (60_000, 0.002), (80_000, 0.0002)):
        assert one.learning_rate(step) == pytest.approx(lr)
    voc = scaled_schedule(DETECT["voc_r18_c4_24k"].optim)
    assert (voc.steps, voc.drops, voc.warmup_steps) == (24_000, (18_000, 22_000), 100)


def test_a_smaller_batch_sees_as_many_pictures_with_a_smaller_learning_rate():
    quarter = scaled_schedule(ScheduleConfig(global_batch_size=4))
    assert (quarter.steps, quarter.drops) == (360_000, (240_000, 320_000))
    assert (quarter.peak_lr, quarter.warmup_steps) == (0.005, 4000)


def test_a_squeezed_schedule_keeps_its_shape():
    short = scaled_schedule(ScheduleConfig(), max_steps=90)
    assert (short.steps, short.drops, short.warmup_steps) == (90, (60, 80), 1)
    assert short.peak_lr == 0.02


def test_a_drop_after_the_end_is_rejected():
    with pytest.raises(ConfigError, match="lr-drops 80000: expected less than .*iterations 100"):
        scaled_schedule(ScheduleConfig(iterations=100))


C4, FPN = "padded to multiples of 32", "torchvision's start of the box head"
MASKS = {"masks as bitmaps, pasted at whole pixels", "torchvision's start of the mask predictor"}
ALWAYS = {
    "resized without antialiasing",
    "anchors in whole pixels",
    "RoIAlign without the half-pixel shift",
    "smooth L1 with beta 1/9",
}
GROUPED, MIXED = "whole steps of one orientation", "mixed orientations"


@pytest.mark.parametrize(
    ("name", "changes", "masks", "expected"),
    [
        ("small", {}, False, {MIXED, FPN}),
        ("coco_r18_fpn_1x", {}, True, {GROUPED, FPN} | MASKS),
        ("coco_r18_c4_2x", {}, True, {GROUPED, C4} | MASKS),
        (
            "coco_r18_c4_1x",
            {"precise_bn_batches": 0},
            False,
            {GROUPED, C4, "running averages in batch norm"},
        ),
        ("coco_r18_c4_1x", {"norm": "frozen"}, False, {GROUPED, C4}),
        ("voc_r18_c4_24k", {}, False, {GROUPED, C4, "VOC scores of unrounded detections"}),
    ],
)
def test_what_differs_from_detectron2_is_declared(name, changes, masks, expected):
    config = DETECT[name]
    config = replace(config, detector=replace(config.detector, **changes))
    assert set(deviations(config, masks=masks)) == ALWAYS | expected
    text = protocol(
        config,
        scaled_schedule(config.optim),
        masks=masks,
        num_training_images=9,
        is_test_trained_on=False,
        num_processes=1,
        mixed_precision="no",
    )
    assert all(each in text.partition("unlike detectron2: ")[2] for each in expected)
    precise = "precise over 200 batches" in text
    assert precise == (config.detector.kind == "c4" and not changes)
    assert ("VOC's" in text) == name.startswith("voc")


def test_every_named_configuration_parses():
    for name, config in DETECT.items():
        assert parse(DETECT, "small", [name]) == (name, config)
    _, changed = parse(DETECT, "small", ["coco_r18_c4_1x", "--model", "random:resnet18"])
    assert (changed.detector.kind, changed.model) == ("c4", "random:resnet18")


@pytest.fixture
def statistics(monkeypatch) -> list[list[int]]:
    """Of each time that batch norm's statistics were taken: the sizes of the batches."""
    taken: list[list[int]] = []

    def noted(network, batches, forward, accelerator):
        there = list(batches)
        taken.append([len(batch) for batch in there])
        recompute_batch_norm_statistics(network, there, forward, accelerator)

    monkeypatch.setattr(detect, "recompute_batch_norm_statistics", noted)
    return taken


@pytest.fixture
def grouped(monkeypatch) -> list[bool]:
    """Whether each of the two series of batches, to train and for statistics, was grouped."""
    found: list[bool] = []

    def noted(*arguments, by_orientation, **how):
        found.append(by_orientation)
        return detection_batches(*arguments, by_orientation=by_orientation, **how)

    monkeypatch.setattr(detect, "detection_batches", noted)
    return found


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_a_run_leaves_scores_detections_and_a_picture(
    data, tmp_path, capsys, kind, statistics, passes
):
    folder = tmp_path / "run"
    precise = 3 * (kind == "c4")
    arguments = [f"--detector.kind={kind}", f"--detector.precise-bn-batches={precise}"]
    detect.main([*TINY, data, *arguments, f"--run.output-dir={folder}"])
    assert statistics == [[2, 2, 2]] * (kind == "c4")
    assert passes == ["test images"]
    evaluation = Evaluation.load(folder)
    assert ("precise over 3 batches" in evaluation.protocol) == (kind == "c4")
    assert evaluation.task == "object detection and instance segmentation"
    assert (evaluation.dataset, evaluation.images, evaluation.seeds) == ("drawn val", 4, (0,))
    three = ("AP", "AP50", "AP75")
    assert list(evaluation.units) == [
        f"{word} {name}" for word in ("box", "mask") for name in three
    ]
    assert set(evaluation.scores) == {"random:test_resnet"}
    assert f"Mask R-CNN {kind.upper()}" in evaluation.protocol
    assert "4 steps of 2 images" in evaluation.protocol
    assert evaluation.table() in capsys.readouterr().out
    found = json.loads((folder / "detections.json").read_text())
    assert {each["category_id"] for each in found} <= {3, 17}
    assert {each["image_id"] for each in found} <= {100, 101, 102, 103}
    assert np.asarray(Image.open(folder / "pictures" / "detections.png")).std() > 10
    assert {"loss", "loss_mask", "loss_classifier", "lr", "step"} <= set(trace(folder)[0])
    for line in trace(folder):
        parts = sum(value for name, value in line.items() if name.startswith("loss_"))
        assert line["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.usefixtures("no_picture")
def test_without_masks_it_is_faster_r_cnn(tmp_path):
    data = f"--data.source={draw_coco(tmp_path / 'boxes', masks=False)}"
    arguments = [*TINY, data, "--run.max-steps=1", "--data.voc-scores"]
    detect.main([*arguments, f"--run.output-dir={tmp_path / 'run'}"])
    evaluation = Evaluation.load(tmp_path / "run")
    assert evaluation.task == "object detection"
    coco, voc = ["box AP", "box AP50", "box AP75"], ["box AP50 VOC2007", "box AP50 VOC2010"]
    assert list(evaluation.units) == [*coco, *voc]
    assert evaluation.protocol.startswith("Faster R-CNN")
    details = evaluation.details["models"]["random:test_resnet"]
    assert set(details["box VOC2007"]) == set(details["box VOC2010"]) == {"AP", "AP50", "AP75"}


@pytest.mark.usefixtures("no_picture")
def test_a_resumed_run_is_the_same_run(data, tmp_path, grouped):
    arguments = [*TINY, data, "--detector.kind=c4", "--detector.precise-bn-batches=2"]
    arguments += ["--data.group-by-orientation", f"--run.output-dir={tmp_path / 'run'}"]
    file = tmp_path / "drawn" / "annotations" / "instances_train.json"
    check_a_resumed_run(detect.main, arguments, "--detector.norm", file, of_both_splits=False)
    assert grouped
    assert all(grouped)
    found = (tmp_path / "run" / "detections.json").read_text()
    # Finished: only the statistics of batch norm are taken again.
    detect.main([*arguments, "--run.max-steps=5", "--run.resume"])
    assert (tmp_path / "run" / "detections.json").read_text() == found


@pytest.mark.usefixtures("no_picture")
def test_it_learns(data, tmp_path):
    arguments = ["--run.max-steps=60", "--optim.lr=0.02", "--run.checkpoint-every-steps=60"]
    detect.main([*TINY, data, *arguments, f"--run.output-dir={tmp_path / 'run'}"])
    losses = [line["loss"] for line in trace(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    scores = Evaluation.load(tmp_path / "run").scores["random:test_resnet"]
    assert scores["box AP50"][0] > 30, "an untrained one has 0"
    assert scores["mask AP50"][0] > 30


@pytest.mark.usefixtures("no_picture")
def test_one_seed_is_one_result_and_another_is_another(data, tmp_path):
    traces = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        detect.main(
            [*TINY, data, f"--run.seed={seed}", "--run.max-steps=1", f"--run.output-dir={folder}"]
        )
        traces.append(trace(folder))
    assert traces[0] == traces[1] != traces[2]


@pytest.mark.usefixtures("bf16", "no_picture")
def test_mixed_precision(data, tmp_path):
    detect.main([*TINY, data, "--run.max-steps=1", f"--run.output-dir={tmp_path / 'run'}"])
    assert np.isfinite(trace(tmp_path / "run")[0]["loss"])
    details = Evaluation.load(tmp_path / "run").details
    assert details["hardware"]["mixed_precision"] == "bf16"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--optim.global-batch-size=6"], ConfigError, "5 pictures with objects, fewer than"),
        (["--data.test-split=test"], DataError, "there is no .*instances_test.json"),
        ([f"--data.source={'a' * 300}"], DataError, "there is no .*instances_train.json"),
        (["--detector.kind=c4", "--model=random:test_efficientnet"], ValueError, "kind fpn"),
        (["--data.sorce=x"], ConfigError, "no option '--data.sorce'; did you mean '--data.source'"),
    ],
)
def test_mistakes_are_found_before_the_folder_is_made(data, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        detect.main([*TINY, data, *arguments, f"--run.output-dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_is_said(data, tmp_path):
    with pytest.raises(ConfigError, match="the loss is nan at step .*; lower --optim.lr"):
        detect.main([*TINY, data, "--optim.lr=1e12", f"--run.output-dir={tmp_path / 'run'}"])


def test_a_picture_that_comes_twice_or_never_is_caught():
    assert detect.one_per_image([(1, [{"score": 2}]), (0, [{"score": 1}])], 2) == [
        *({"score": 1}, {"score": 2})
    ]
    for indices in ([0, 1, 1], [0], [0, 2]):
        with pytest.raises(AssertionError):
            detect.one_per_image([(index, []) for index in indices], 2)


@pytest.mark.usefixtures("no_picture")
def test_two_processes_train_together_and_find_what_one_finds(data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    arguments = [*TINY, data, "--run.max-steps=2", f"--run.output-dir={folder}"]
    run_in_two_processes(detect, arguments, without="save_detections")
    before, by_two = trace(folder), (folder / "detections.json").read_text()
    assert [line["step"] for line in before] == [0, 1]
    scores = Evaluation.load(folder).scores
    monkeypatch.setattr(launch, "num_cores", lambda: 1)  # several threads round otherwise
    detect.main([*arguments, "--run.resume"])  # the run is finished; one process detects again
    assert trace(folder) == before
    assert json.loads((folder / "detections.json").read_text()) == json.loads(by_two)
    assert len(json.loads(by_two)) > 0
    assert Evaluation.load(folder).scores == scores


@pytest.mark.usefixtures("no_picture")
def test_a_resumed_run_keeps_the_weights_it_began_with(data, tmp_path):
    """The name means another weight by now: its scores would go into the wrong record."""
    store.add("test_resnet.pcd", filled(0.01, tmp_path / "one"))
    arguments = [a for a in TINY if not a.startswith("--model")] + ["--model=test_resnet.pcd", data]
    arguments += ["--run.max-steps=1", f"--run.output-dir={tmp_path / 'run'}"]
    detect.main(arguments)
    before = Evaluation.load(tmp_path / "run").weights_sha256
    store.add("test_resnet.pcd", filled(0.02, tmp_path / "two"))
    with pytest.raises(
        CheckpointError, match="the backbone changed after step 1: .*test_resnet.pcd"
    ):
        detect.main([*arguments, "--run.resume"])
    assert Evaluation.load(tmp_path / "run").weights_sha256 == before
