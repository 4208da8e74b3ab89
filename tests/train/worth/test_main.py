"""``pcd-hub worth`` on drawn labels."""

import itertools
import json
import shutil
import signal

import pytest

from pcd_hub.data.labelled.subset import coco_subset
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.evaluate.comparison import joined_tables
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.lab import jobs
from pcd_hub.train.lab.paired import paired_difference
from pcd_hub.train.segmentation import finetune
from pcd_hub.train.signals import StoppedRun
from pcd_hub.train.worth import main, timing
from pcd_hub.train.worth.plan import image_names
from pcd_hub.train.worth.timing import Speed
from tests.evaluate.drawn_sets import draw_segmentation
from tests.train.detection.drawn_coco import draw_coco, read_drawn

MODELS = ("random:test_resnet", "random:test_efficientnet")
SHORT = [
    "--models",
    *MODELS,
    "--shares",
    "50",
    "100",
    "--seeds=2",
    "--budget=2",
    "--data.num-workers=0",
    "--optim.global-batch-size=2",
]
CROPS = ["--data.crop-size", "32", "32", "--fcn.channels=8", "--fcn.output-stride=32"]
BOXES = ["--detector.short-sides", "40", "--detector.max-long-side=80", "--detector.channels=8"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("pcd_hub.train.segmentation.finetune.draw", lambda _: None)
    monkeypatch.setattr("pcd_hub.train.detection.detect.save_detections", lambda *_: None)


@pytest.fixture
def no_timing(monkeypatch):
    """Measuring the speed takes as long as a tiny run."""
    monkeypatch.setattr(timing, "measure", lambda *_: Speed(step=60.0, test_image=0.0))


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Return the fine-tunings that are started, as seed-SEED/share-SHARE."""
    found, call = [], jobs._call

    def watched(job, resume):
        found.append("/".join(job.folder.parts[-2:]) + " again" * bool(resume))
        return call(job, resume)

    monkeypatch.setattr(jobs, "_call", watched)
    return found


@pytest.fixture
def discs(tmp_path):
    return draw_segmentation(tmp_path / "discs")


@pytest.fixture
def run(discs, tmp_path):
    def call(*arguments):
        return main.main(
            [str(discs), *SHORT, *CROPS, f"--output-dir={tmp_path / 'out'}", *arguments]
        )

    return call


def test_if_all_fine_tunings_fail_it_is_an_error_and_nothing_is_lost(run, discs, monkeypatch):
    """Repaired test images do not need another folder as long as no run has used them."""
    monkeypatch.setattr(main, "_print_estimate", lambda _: None)  # it would find the broken mask
    mask = discs / "masks" / "val" / "3.png"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-30])
    with pytest.raises(
        DataError, match=r"^all 8 fine-tunings failed, the first of them: .*3.png cannot be read"
    ):
        run()
    mask.write_bytes(whole)
    assert set(run()["shares"]) == {"50", "100"}
    mask.write_bytes(whole + b"more")
    with pytest.raises(ConfigError, match="the test images changed since the runs in"):
        run()


def test_two_starts_are_compared_on_the_same_labels(
    run, started, discs, tmp_path, capsys, monkeypatch
):
    values = itertools.accumulate(itertools.count(1))  # tiny runs have equal scores
    monkeypatch.setattr(
        finetune,
        "iou_scores",
        lambda *_: (dict.fromkeys(("mean IoU", "pixel accuracy"), float(next(values))), {}),
    )
    result = run()
    printed = capsys.readouterr().out
    assert "8 fine-tunings of 2 steps: about a minute on this machine" in printed
    assert started == [f"seed-{s}/share-{p}" for s in (0, 1) for p in (50, 100) for _ in MODELS]
    drawn = {}
    for seed in (0, 1):
        for share in (50, 100):
            file = tmp_path / "out" / "labels" / f"share-{share}_seed-{seed}.txt"
            drawn[share, seed] = file.read_text().split()
        assert len(drawn[50, seed]) == 6
        assert set(drawn[50, seed]) < set(drawn[100, seed])
    assert drawn[50, 0] != drawn[50, 1]
    assert drawn[50, 0][0].startswith(str(discs / "images" / "train"))
    rows = result["shares"]["50"]
    found = {}
    for label, row in rows.items():
        found[label] = row["metrics"]["mean IoU"]["by_seed"]
        for file in (tmp_path / "out").glob(f"rows/{label.replace(':', '_')}-*/seed-1/share-50"):
            table = Evaluation.load(file)
            assert table.scores[label]["mean IoU"] == (found[label][1],)
            assert "discs/train, 50 % drawn (6 images) for 2 steps" in table.protocol
    whole, half = joined_tables([tmp_path / "out" / "rows"])
    assert (whole.dataset, half.dataset) == ("discs/val", "discs/val, 50 % of the labels")
    assert result["dataset"] == "discs/val"
    assert (half.seeds, {*half.scores}) == (whole.seeds, {*whole.scores}) == ((0, 1), {*MODELS})
    expected = paired_difference(found[MODELS[1]], found[MODELS[0]])
    assert expected
    assert expected.half_width is not None
    assert expected.half_width > 0
    difference = rows[MODELS[1]]["metrics"]["mean IoU"]["difference"]
    assert difference["mean"] == expected.mean
    low, high = expected.mean - expected.half_width, expected.mean + expected.half_width
    assert f"{expected.mean:+.2f} ({low:+.2f} to {high:+.2f})" in printed
    assert result["verdicts"].keys() == {MODELS[1]}
    assert result["verdicts"][MODELS[1]] in printed
    assert "mean IoU (%) of random:test_efficientnet against" in result["verdicts"][MODELS[1]]
    budget = "2 steps of 2 images see each labelled image this often: 0.667 at 50 %, 0.333 at 100 %"
    assert budget in printed
    assert "| 50 % (6 images) | random:test_resnet |" in printed
    assert f"{MODELS[1]}, 50 % of the labels, seed 1: mean IoU " in printed
    assert "Again: python" not in printed  # of each run alone
    assert json.loads((tmp_path / "out" / "worth.json").read_text())["metric"] == "mean IoU"
    assert "pixel accuracy" in (tmp_path / "out" / "worth.md").read_text()
    assert not list((tmp_path / "out").rglob("checkpoints"))


@pytest.mark.usefixtures("no_timing")
def test_what_is_finished_is_not_repeated_and_a_stopped_run_goes_on(
    run, started, tmp_path, monkeypatch
):
    real = jobs._call

    def stopping(job, resume):
        outcome = real(job, [*resume, "--run.checkpoint-every-steps=1"])
        if len(started) == 2:
            (job.folder / "evaluation.json").unlink()
            raise StoppedRun(signal.SIGTERM, job.folder, step=2)
        return outcome

    def verdict():
        return (tmp_path / "out" / "worth.md").read_text().split("\n")[2]

    monkeypatch.setattr(jobs, "_call", stopping)
    with pytest.raises(StoppedRun, match="continue with the same command$"):
        run("--seeds=1")
    assert verdict() == f"No verdict on {MODELS[1]} yet: 1 of 4 fine-tunings are finished."
    monkeypatch.setattr(jobs, "_call", real)
    started.clear()
    assert run("--seeds=1")["shares"]["50"][MODELS[1]]["metrics"]
    assert started == ["seed-0/share-50 again", "seed-0/share-100", "seed-0/share-100"]
    started.clear()
    run("--seeds=1")
    assert not started


@pytest.mark.usefixtures("no_timing")
def test_a_failed_run_is_shown_as_failed_and_the_others_run(run, started, monkeypatch, capsys):
    real = jobs._call

    def failing(job, resume):
        outcome = real(job, resume)
        return {"reason": "the loss is nan"} if "efficientnet" in str(job.folder) else outcome

    monkeypatch.setattr(jobs, "_call", failing)
    result = run("--seeds=1", "--shares=100")
    printed = capsys.readouterr().out
    assert "seed 0 failed: the loss is nan" in printed
    assert "random:test_efficientnet, 100 % of the labels, seed 0: failed" in printed
    assert "No verdict on random:test_efficientnet against random:test_resnet: runs" in printed
    assert result["shares"]["100"][MODELS[1]]["failed"] == {0: "the loss is nan"}
    started.clear()
    run("--seeds=1", "--shares=100")
    assert not started, "it stays failed"


@pytest.mark.usefixtures("no_timing")
def test_other_settings_images_or_weights_are_refused(run, discs):
    run("--seeds=1", "--shares=100")
    with pytest.raises(ConfigError, match=r"was run with --optim.lr 0.01, found 0.02"):
        run("--seeds=1", "--shares=100", "--optim.lr=0.02")
    shutil.copy(discs / "masks" / "val" / "0.png", discs / "masks" / "val" / "6.png")
    shutil.copy(discs / "images" / "val" / "0.png", discs / "images" / "val" / "6.png")
    with pytest.raises(ConfigError, match="the test images changed since the runs in"):
        run("--seeds=1", "--shares=100")


@pytest.mark.usefixtures("no_timing")
def test_test_images_that_were_distilled_on_are_refused(run, started, discs, tmp_path, capsys):
    pool = tmp_path / "pool"
    shutil.copytree(discs / "images" / "train", pool)
    run("--seeds=1", "--shares=100", f"--distilled-on={pool}")
    assert "none of 5 test images is among the 12 of" in capsys.readouterr().out
    started.clear()
    shutil.copy(discs / "images" / "val" / "3.png", pool / "photo.png")
    with pytest.raises(DataError, match=r"1 of 5 test images are among .*val/3.png \(photo.png\)"):
        run("--seeds=1", "--shares=100", f"--distilled-on={pool}")
    assert not started


def test_a_detector_is_trained_if_the_labels_are_boxes(tmp_path, started, capsys):
    data = draw_coco(tmp_path / "drawn", train=9, masks=False)
    out = f"--output-dir={tmp_path / 'out'}"
    one = ["--seeds=1", "--shares=50", "--budget=1"]
    result = main.main([str(data), *SHORT, *BOXES, *one, out])
    assert (result["task"], result["metric"]) == ("object detection", "box AP")
    assert started == ["seed-0/share-50"] * 2
    assert "4 training images, 50 % drawn" in result["protocol"]["50"]
    (table,) = joined_tables([tmp_path / "out" / "rows"])
    assert (result["dataset"], table.dataset) == ("drawn val", "drawn val, 50 % of the labels")
    assert "one seed says nothing about noise" in capsys.readouterr().out


def test_images_without_objects_are_no_labels(tmp_path):
    """The last of 9 images is empty; a detector is not trained on it."""
    split = read_drawn(draw_coco(tmp_path, train=9))
    assert len(image_names(coco_subset(split, share=1.0, seed=0))) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "random:test_resnet"], "--models random:test_resnet: expected two or more"),
        (["--models", "random:test_resnet", "random:test_resnet"], "at least one, and none twice"),
        (["--shares", "10"], "--shares 10: 1 images, expected at least 2, one batch"),
        (["--shares", "0"], "--shares 0.*: expected .* values, each a number > 0 and <= 100"),
        (["--run.seed=3"], "--run.seed is set for each run by pcd-hub worth; leave it out"),
        (["--data.train-share=0.5"], "--data.train-share is set for each run"),
        (["--data.check"], "--data.check prints labels and trains nothing; use the recipe itself"),
        (["--model=x"], "no option '--model'; did you mean '--models'"),
        (["--recipe-config=smal"], "no configuration 'smal'; did you mean 'small'"),
        (["--optim.lrr=1"], "no option '--optim.lrr'"),
    ],
)
def test_mistakes_are_found_before_the_folder_is_made(run, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(*arguments)
    assert not (tmp_path / "out").exists()
