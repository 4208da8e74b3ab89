import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from accelerate.utils import LoggerType
from PIL import Image

import pcd_hub
from pcd_hub.data.workers import STOP_SIGNALS
from pcd_hub.errors import CheckpointError, ConfigError, DataError, PCDHubError, StudentError
from pcd_hub.models.timm_loading import create_pretrained
from pcd_hub.train import distill, distill_parts, optimizers
from pcd_hub.train import run as training
from pcd_hub.train import signals as stopping
from pcd_hub.train.configs import command_line
from pcd_hub.train.configs import distill as configs
from pcd_hub.train.monitors import trackers
from pcd_hub.train.run_folder import folder as run_folder
from pcd_hub.train.run_folder import preflight as places
from pcd_hub.train.signals import StoppedRun
from pcd_hub.weights import store
from tests.train.conftest import trace

RECIPES = Path(__file__).parents[2] / "recipes"


def run(arguments: list[str], folder: Path, *more: str) -> Path:
    distill.main([*arguments, f"--run.output-dir={folder}", *more])
    return folder


@pytest.mark.usefixtures("short_probe")
def test_a_run_leaves_everything_that_is_promised(tiny, tmp_path, capsys, passes):
    folder = run(tiny, tmp_path / "run", "--probe-scenes=8")
    assert passes[0] == "drawing scenes"
    for name in ("random start", "distilled student", "teacher"):
        assert [what.partition(": ")[2] for what in passes if what.startswith(f"{name}:")] == [
            "features of training images",
            "features of test images",
            "statistics of training images",
            "training the probe",
            "predictions of test images",
        ]
    left = {path.name for path in folder.iterdir()}
    assert left == {
        ".gitignore",
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "pictures",
        "record.json",
        "export",
    }
    printed = capsys.readouterr().out
    for label in ("random start", "distilled student", "teacher", "mean IoU"):
        assert label in printed
    for picture, size in (("views", (8 * 32, 2 * 32)), ("probe", (8 * 96, 5 * 96))):
        with Image.open(folder / "pictures" / f"{picture}.png") as image:
            assert image.size == size

    record = json.loads((folder / "record.json").read_text())
    assert record["name"] == "test_resnet.pcd"
    assert record["steps"] == 6
    assert record["images_seen"] == 48
    assert record["teacher"]["license"] == "mit"
    assert record["data"]["images"] == 64
    assert set(record["metrics"]["scene_probe"]["means"]) == {
        "random start",
        "distilled student",
        "teacher",
    }

    assert {path.name for path in (folder / "export").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "pca.png",
        "pcd_manifest.json",
        "probe.png",
        "training.png",
    }, "no picture that shows a training image"
    manifest = json.loads((folder / "export" / "pcd_manifest.json").read_text())
    assert manifest["record"] == record
    assert "distilled student** (this weight)" in (folder / "export" / "README.md").read_text()

    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    seen = {"pixel_rank", "pixel_cosine", "key_cosine"}
    assert set(first) == {"step", "loss", "lr", "images_per_s", "data_wait", *seen}
    assert first["lr"] > 0


def test_the_student_is_created_by_name_in_the_next_process(tiny, tmp_path):
    folder = run([*tiny, "--student.arch=resnet18"], tmp_path / "run")
    code = """
import pcd_hub, timm
model = timm.create_model("resnet18.pcd", pretrained=True, features_only=True)
print(float(model.conv1.weight.detach().double().sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    state = torch.load(next((folder / "checkpoints").glob("*06.pt")), weights_only=True)
    assert float(done.stdout) == float(
        state["distiller"]["student.model.conv1.weight"].double().sum()
    )


def test_distillation_moves_the_student_and_not_the_teacher(tiny, tmp_path):
    config = dataclasses.replace(command_line.parse(configs.DISTILL, "quickstart", tiny)[1])
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, output_dir=tmp_path / "run")
    )
    from pcd_hub.train.launch import start_accelerator

    finished = distill.prepare(start_accelerator(), config, "test")
    distill.train(finished)
    again = pcd_hub.load_teacher(config.teacher.source, image_size=32)
    again.fold_batch_norms(32)
    for key, value in finished.teacher.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    start, weight = finished.random_start.state_dict(), "layer1.0.conv1.weight"
    assert not torch.equal(finished.student.state_dict()[weight], start[weight])


def test_the_queue_holds_the_pooled_teacher_vectors_of_the_first_view(tiny, tmp_path):
    from pcd_hub.data.loader import BatchPlan, training_batches
    from pcd_hub.data.sources import open_source
    from pcd_hub.data.views import byol_views

    folder = run(tiny, tmp_path / "run")
    queue = torch.load(folder / "checkpoints" / "step_00000003.pt", weights_only=True)["queue"]
    teacher = pcd_hub.load_teacher(tiny[0].removeprefix("--teacher.source="), image_size=32)
    views = byol_views(32, seed=0, crop_area=(0.2, 1.0))
    plan = BatchPlan(global_batch_size=8, total_steps=3)
    keys = []
    for batch in training_batches(open_source("scenes:64"), views, plan, num_workers=0):
        pooled = teacher(batch.views[:, 0] / 255).mean((2, 3))
        keys.append(torch.nn.functional.normalize(pooled, dim=1))
    torch.testing.assert_close(queue["keys"][:24], torch.cat(keys), rtol=1e-4, atol=1e-5)
    assert queue["cursor"] == 24


@pytest.mark.parametrize(
    "options",
    [
        ["--method.loss=cosine_smooth_l1", "--method.head=linear"],
        ["--method.loss=similarity_kl", "--data.image-size=64", "--method.temperature=0.07"],
        ["--method.targets=pooled"],
        ["--method.targets=pooled", "--method.loss=cosine_smooth_l1"],
        ["--teacher.image-size=64"],
    ],
)
def test_every_way_to_distil_learns_and_resumes(tiny, tmp_path, options):
    arguments = [*tiny, *options, "--run.max-steps=12", "--run.checkpoint-every-steps=6"]
    folder = run(arguments, tmp_path / "run", "--run.no-store")
    whole = trace(folder)
    assert sum(line["loss"] for line in whole[-3:]) < sum(line["loss"] for line in whole[:3])
    (folder / "checkpoints" / "step_00000012.pt").unlink()
    run(arguments, folder, "--run.resume", "--run.no-store")
    assert trace(folder) == whole


def test_the_loss_is_the_one_that_was_asked_for(tiny, tmp_path):
    """The first loss of each, from the recipe's own parts."""
    from pcd_hub.method.loss import cosine_smooth_l1
    from pcd_hub.method.moments import ChannelMoments

    seen = []

    def spy(student, teacher):
        seen.append((student.shape, teacher.clone()))
        return cosine_smooth_l1(student, teacher)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill_parts, "cosine_smooth_l1", spy)
        run([*tiny, "--method.loss=cosine_smooth_l1"], tmp_path / "run", "--run.no-store")
    shape, first = seen[0]
    assert shape == (16, 16, 1, 1)
    again = ChannelMoments(16)
    again.add(ChannelMoments.of(first)[None])
    torch.testing.assert_close(again.standardise(first), first, rtol=1e-3, atol=1e-3)
    pooled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            distill_parts,
            "cosine_smooth_l1",
            lambda s, t: pooled.append(s.shape) or (s - t).square().mean(),
        )
        run(
            [
                *tiny,
                "--method.loss=cosine_smooth_l1",
                "--method.targets=pooled",
                "--data.image-size=64",
            ],
            tmp_path / "pooled",
            "--run.no-store",
        )
    assert set(pooled) == {(16, 16, 1, 1)}, "a 2 x 2 grid, pooled"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method.loss=similarity_kl"], "found 1 with --method.targets pixels on a 1 x 1"),
        (["--method.loss=similarity_kl", "--method.targets=pooled"], "--method.targets pooled"),
    ],
)
def test_similarities_of_a_single_pixel_are_refused_before_anything_is_made(
    tiny, tmp_path, options, message
):
    with pytest.raises(ConfigError, match=message):
        run([*tiny, *options], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [["--teacher.image-size=64"], ["--teacher.source=quickstart"]])
def test_the_random_start_does_not_depend_on_the_teacher(tiny, tmp_path, monkeypatch, options):
    seen = []
    monkeypatch.setattr(
        distill, "save_weight", lambda finished, name: seen.append(finished.random_start)
    )
    run([*tiny, "--run.max-steps=1"], tmp_path / "one")
    run([*tiny, *options, "--run.max-steps=1"], tmp_path / "other")
    one, other = (model.state_dict()["layer1.0.conv1.weight"] for model in seen)
    assert torch.equal(one, other)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("source", ["scenes:64", "stream"])
def test_resume_equals_never_having_stopped(tiny, tmp_path, monkeypatch, source):
    if source == "stream":
        import datasets

        images = [Image.new("RGB", (40, 40), (5 * n, 200 - 5 * n, 90)) for n in range(20)]
        table = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
        (tmp_path / "hub").mkdir()
        table.to_parquet(tmp_path / "hub" / "train.parquet")
        source = f"hf-stream:{tmp_path / 'hub'}"
    arguments = [*tiny, f"--data.source={source}"]
    whole = run(arguments, tmp_path / "whole", "--run.no-store")

    measure = training.Progress.measure

    def die_at_step_4(self, step, loss):
        if step == 4:
            raise _KilledError
        return measure(self, step, loss)

    with monkeypatch.context() as patched:
        patched.setattr(training.Progress, "measure", die_at_step_4)
        with pytest.raises(_KilledError):
            run(arguments, tmp_path / "stopped", "--run.no-store")
    assert len(trace(tmp_path / "stopped")) == 4, "one step beyond the checkpoint was logged"
    torch.manual_seed(99)
    resumed = run(arguments, tmp_path / "stopped", "--run.no-store", "--run.resume")

    assert trace(resumed) == trace(whole)
    one, other = (
        torch.load(folder / "checkpoints" / "step_00000006.pt", weights_only=True)
        for folder in (whole, resumed)
    )
    _assert_same(one, other)


def _assert_same(one, other):
    assert type(one) is type(other)
    match one:
        case torch.Tensor():
            assert torch.equal(one, other)
        case dict():
            assert one.keys() == other.keys()
            for key in one:
                _assert_same(one[key], other[key])
        case list() | tuple():
            for a, b in zip(one, other, strict=True):
                _assert_same(a, b)
        case _:
            assert one == other


PLAIN = [
    "--teacher.no-fold-batch-norms",
    "--speed.no-channels-last",
    "--speed.no-foreach",
    "--speed.no-keep-memory",
]
"""What is fast, switched off."""


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_golden_loss_trace(tiny, tmp_path, request, monkeypatch, fast):
    """Twenty steps on the CPU. A change that should not alter results shows the same trace.

    Every way to be fast included: the views are Pillow's, as OpenCV rounds otherwise.
    """
    golden = Path(__file__).parents[1] / "golden" / "distill_trace.json"
    options = ["--run.max-steps=20", "--run.no-store", "--data.renderer=pillow"]
    if not fast:
        options += PLAIN
        monkeypatch.setattr("pcd_hub.method.loss._flash_takes", lambda *_: False)
    folder = run([*tiny, *options], tmp_path / "run")
    found = [line["loss"] for line in trace(folder)]
    if request.config.getoption("--update-golden"):
        golden.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(golden.read_text())
    # Rounding grows along the run: other kernels for the same sums moved the first five steps by
    # about 1e-5 and the worst of twenty by 2.3e-4.
    assert found[:5] == pytest.approx(expected[:5], rel=1e-4)
    assert found == pytest.approx(expected, rel=2e-3)
    assert found[-1] < found[0]


def test_accumulation_shows_the_same_images_and_learning_rate(tiny, tmp_path):
    one = trace(run(tiny, tmp_path / "one", "--run.no-store"))
    two = trace(run(tiny, tmp_path / "two", "--run.no-store", "--optim.accumulation-steps=2"))
    assert [line["lr"] for line in one] == [line["lr"] for line in two]
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=0.05), "BatchNorm sees half as many"


def test_trackers_write_into_the_run_folder(tiny, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    options = ["--run.no-store", "--run.trackers", "tensorboard", "--run.project", "mine"]
    folder = run(tiny, tmp_path / "run", *options)
    (events,) = (folder / "mine").glob("events.out.tfevents.*")
    seen = EventAccumulator(str(events), size_guidance={"images": 0})
    seen.Reload()
    tags = seen.Tags()
    assert {"loss", "lr"} <= set(tags["scalars"])
    assert {(tag, seen.Images(tag)[0].step) for tag in tags["images"]} == {
        ("views", 0),
        ("pca", 5),
        ("training", 5),
    }
    assert (seen.Images("views")[0].width, seen.Images("views")[0].height) == (8 * 32, 2 * 32)
    (parameters,) = folder.rglob("hparams.yml")
    found = yaml.safe_load(parameters.read_text())
    assert found["optim.lr_per_256"] == 0.02
    assert found["student.arch"] == "test_resnet"
    assert found["optim.clip_grad_norm"] == "null"
    assert not {path.name for path in tmp_path.iterdir()} - {"run", "store"}


class _Tracker:
    """What Accelerate's trackers have in common, and the pictures of one that takes files."""

    name = "mlflow"
    requires_logging_directory = False
    made: ClassVar[list["_Tracker"]] = []

    def __init__(self, project, **arguments):
        self.project, self.arguments, self.artifacts, self.config = project, arguments, [], {}
        self.finished = False
        _Tracker.made.append(self)

    def start(self):
        if self.project == "refused":
            raise RuntimeError("no API key\nsee elsewhere")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step, **_):
        self.last = (step, values["loss"])
        if self.project == "broken":
            raise RuntimeError("HTTP 503\nlater")

    def log_artifact(self, path):
        assert not self.finished, "a tracker takes nothing after its end"
        self.artifacts.append(Path(path).name)
        if self.project == "broken":
            raise OSError("no quota")

    def finish(self):
        self.finished = True
        if self.project == "broken":
            raise ConnectionError("the network is gone")


def test_a_tracker_is_told_project_run_and_pictures_or_refuses_in_one_line(
    tiny, tmp_path, monkeypatch, caplog
):
    def assert_still_open():
        assert not _Tracker.made[-1].finished, "an export that is stored comes first"

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.MLFLOW])
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "mlflow", _Tracker)
    short = ["--run.no-store", "--run.max-steps=1", "--run.trackers", "mlflow"]
    for options, run_name in (([], "one"), (["--run.run-name=first"], "first")):
        run(tiny, tmp_path / "one" if not options else tmp_path / "two", *short, *options)
        tracker = _Tracker.made.pop()
        assert (tracker.project, tracker.arguments) == ("pcd_hub", {"run_name": run_name})
        assert tracker.config["run.max_steps"] == 1
        assert tracker.last[0] == 0
        assert sorted(tracker.artifacts) == ["pca.png", "training.png", "views.png"]
        assert tracker.finished
    assert "tracker" not in caplog.text
    monkeypatch.setattr(store, "add", lambda *_: assert_still_open())
    run(tiny, tmp_path / "broken", *short[1:], "--run.project=broken")
    assert (tmp_path / "broken" / "record.json").exists()
    tracker = _Tracker.made.pop()
    assert tracker.finished
    assert tracker.last[0] == 0
    assert sorted(tracker.artifacts) == ["pca.png", "training.png", "views.png"]
    assert caplog.text.count("the tracker mlflow failed (OSError: no quota); the run goes on") == 1
    assert caplog.text.count("the tracker mlflow") == 1
    with pytest.raises(ConfigError, match=r"mlflow: cannot start \(RuntimeError: no API key\)"):
        run(tiny, tmp_path / "three", *short, "--run.project=refused")


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("wandb", "--run.trackers wandb: not installed; pip install wandb"),
        ("wandbb", "wandbb: Accelerate has no such tracker; did you mean 'wandb'.*tensorboard"),
    ],
)
def test_a_tracker_that_is_not_there_is_named(tiny, tmp_path, monkeypatch, tracker, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        run(tiny, tmp_path / "run", "--run.trackers", tracker)


def test_cross_views_pair_the_other_view_by_grid_index():
    pixels = torch.arange(8.0).reshape(4, 2, 1, 1)
    config = configs.DistillConfig(method=configs.PixelMethodConfig(views="cross"))
    assert distill.pair_views(pixels, config).flatten().tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert distill.pair_views(pixels, configs.DistillConfig()) is pixels


def test_bfloat16_autocast_takes_effect_on_the_cpu(tiny, tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    seen = []
    forward = torch.nn.Conv2d.forward

    def spy(self, x):
        out = forward(self, x)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spy)
    try:
        folder = run(
            [*tiny, "--speed.precision=bf16"],
            tmp_path / "run",
            "--run.no-store",
            "--run.max-steps=1",
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert seen.count(torch.bfloat16) > 10, "teacher and student convolutions"
    assert json.loads((folder / "record.json").read_text())["hardware"]["mixed_precision"] == "bf16"


def test_headless_teachers_and_other_students(tmp_path, tiny):
    """A timm folder as teacher, MobileNetV3 as student: a finer grid, layers without effect."""
    from tests.models.test_teachers import timm_folder

    teacher = timm_folder(tmp_path / "t", model_args={"output_stride": 16})
    folder = run(
        tiny,
        tmp_path / "run",
        f"--teacher.source=local-dir:{teacher}",
        "--student.arch=mobilenetv3_small_050",
        "--run.max-steps=2",
        "--run.no-store",
    )
    record = json.loads((folder / "record.json").read_text())
    assert record["untrained"] == ["conv_head.weight", "conv_head.bias"]
    model = create_pretrained(f"local-dir:{folder / 'export'}", num_classes=4)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 4)


# What users get wrong. Nothing is written before it is found.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("--data.source=/no/such", DataError, "no folder /no/such"),
        (
            "--teacher.source=mocov3_r50:/no/such",
            PCDHubError,
            "no teacher file /no/such; download r-50-1000ep.pth.tar of MoCo v3's release, https",
        ),
        (
            "--student.arch=resnet81",
            StudentError,
            "no architecture 'resnet81'; did you mean 'resnet",
        ),
        ("--data.sorce=x", ConfigError, "no option '--data.sorce'; did you mean '--data.source'"),
        ("--run.name=resnet18", PCDHubError, "not a weight's name"),
        ("--run.name=resnet18.pcd", ConfigError, "names another architecture"),
        (
            "--optim.global-batch-size=65",
            ConfigError,
            "has 64 images, fewer than one batch of 65; lower --optim.global-batch-size",
        ),
        ("--run.max-steps=0", ConfigError, "--run.max-steps 0: expected a whole number from 1 to"),
        (
            "--data.min-crop-area=0.9 --data.max-crop-area=0.2",
            ConfigError,
            "min-crop-area 0.9 is larger than",
        ),
        ("--data.source=scenes:-5", DataError, "scenes:-5: COUNT is 1 to"),
        ("--speed.precision=fp16", ConfigError, "--speed.precision fp16 needs a GPU; .* bf16$"),
        (
            "--student.arch=resnet18.pcd",
            ConfigError,
            "--student.arch resnet18.pcd: expected an architecture, .*; give resnet18$",
        ),
        ("--run.resume", ConfigError, "holds no run"),
        ("--student.arch=coat_tiny --data.image-size=40", StudentError, "coat_tiny cannot take 40"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tiny, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        run(tiny, tmp_path / "run", *change.split())
    assert not (tmp_path / "run").exists()
    assert not store.home().exists()


def test_an_unknown_configuration_suggests_the_nearest():
    with pytest.raises(
        ConfigError, match="no configuration 'quickstrat'; did you mean 'quickstart'"
    ):
        distill.main(["quickstrat"])


def test_a_student_of_fixed_size_is_built_for_the_size_that_is_asked(tiny, tmp_path):
    folder = run(
        tiny, tmp_path / "run", "--student.arch=test_vit", "--run.max-steps=1", "--run.no-store"
    )
    config = json.loads((folder / "export" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    create_pretrained(f"local-dir:{folder / 'export'}")


def test_another_run_is_not_written_over(tiny, tmp_path):
    folder = run(tiny, tmp_path / "run", "--run.no-store")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigError, match="is not empty; add --run.resume"):
        run(tiny, folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_finished_run_goes_on_when_it_is_made_longer_and_in_no_other_way(tiny, tmp_path):
    folder, end = tmp_path / "run", ["--run.no-store", "--run.resume"]
    by_epochs = [*tiny, "--data.source=scenes:24", "--run.max-steps=None"]
    run(by_epochs, folder, "--run.no-store", "--optim.epochs=2")
    six = trace(folder)
    with pytest.raises(CheckpointError, match=r"another --optim.lr-per-256 \(0.02, now 0.03\)"):
        run(by_epochs, folder, *end, "--optim.epochs=2", "--optim.lr-per-256=0.03")
    with pytest.raises(CheckpointError, match="6 steps are done, and the run would end after 3;"):
        run(by_epochs, folder, *end, "--optim.epochs=1")
    assert trace(folder) == six
    assert not (folder / "changes.json").exists()

    run(by_epochs, folder, *end, "--optim.epochs=4", "--run.keep-checkpoints=9")
    twelve = trace(folder)
    assert twelve[:6] == six
    optim = configs.OptimConfig(lr_per_256=0.02, global_batch_size=8, warmup_share=0.05)
    expected = [optimizers.learning_rate(step, optim, 12) for step in range(6, 12)]
    assert [line["lr"] for line in twelve[6:]] == expected
    changes = [
        {"after_step": 6, "what": "--run.keep-checkpoints", "from": 2, "to": 9},
        {"after_step": 6, "what": "--optim.epochs", "from": 2, "to": 4},
    ]
    last = folder / "checkpoints" / "step_00000012.pt"
    record = json.loads((folder / "record.json").read_text())
    assert (record["steps"], record["config"]["optim"]["epochs"]) == (12, 4)
    for recorded in (
        json.loads((folder / "changes.json").read_text()),
        record["config"]["changed_at_resume"],
        torch.load(last, weights_only=True)["changes"],
    ):
        assert sorted(recorded, key=lambda change: change["what"], reverse=True) == changes

    last.unlink()
    run(by_epochs, folder, *end, "--optim.epochs=4", "--run.keep-checkpoints=9")
    assert trace(folder) == twelve, "resumed in the longer run, to the bit"
    assert len(torch.load(last, weights_only=True)["changes"]) == 2


@pytest.mark.parametrize("queue", [4, 64], ids=["short queue", "queue capped by the data"])
def test_a_resumed_run_notices_that_its_data_changed(tiny, tmp_path, queue):
    images = image_folder(tmp_path / "images", 16, broken=0)
    folder = tmp_path / "run"
    arguments = [*tiny, f"--data.source={images}", f"--method.queue-length={queue}"]
    run(arguments, folder, "--run.no-store")
    (folder / "checkpoints" / "step_00000006.pt").unlink()
    before = trace(folder)
    for number in range(16, 20):
        Image.new("RGB", (40, 40), (number, 9, 9)).save(images / f"{number:04}.png")
    resume = ["--run.no-store", "--run.resume"]
    with pytest.raises(CheckpointError, match="began with 16 files, .* is 20 files, .*accept-ch"):
        run(arguments, folder, *resume)
    assert trace(folder) == before, "nothing was trained or cut off"

    run(arguments, folder, *resume, "--run.accept-changed-data")
    assert trace(folder)[:3] == before[:3]
    state = torch.load(folder / "checkpoints" / "step_00000006.pt", weights_only=True)
    assert len(state["queue"]["keys"]) == min(queue, 10), "half of the images there are now"
    record = json.loads((folder / "record.json").read_text())
    (change,) = record["config"]["changed_at_resume"]
    assert (change["after_step"], change["what"], change["to"]) == (
        3,
        "data",
        record["data"]["fingerprint"],
    )
    assert change["from"].startswith("16 files, ")


def test_a_stream_goes_on_with_as_many_processes_alone(tmp_path):
    two = types.SimpleNamespace(num_processes=2, process_index=1)
    folder = run_folder.RunFolder(tmp_path, two, configs.DistillConfig(), inputs={})
    mine = {0: {"done": 3}}
    assert folder.stream_states({"per_process": [{"stream": {}}, {"stream": mine}]}) == mine
    assert folder.stream_states({"per_process": [{"stream": {}}]}) == {}, "no stream"
    with pytest.raises(CheckpointError, match="read by 1 processes, now there are 2; resume with"):
        folder.stream_states({"per_process": [{"stream": mine}]})


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no sum"])
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    tiny, tmp_path, damage, caplog
):
    folder = run(tiny, tmp_path / "run", "--run.no-store")
    whole = trace(folder)
    first, last = sorted((folder / "checkpoints").glob("*.pt"))
    state = torch.load(last, weights_only=True)
    match damage:
        case "truncated":
            os.truncate(last, 1000)
        case "flipped":
            data = bytearray(last.read_bytes())
            data[len(data) // 2] ^= 1
            last.write_bytes(data)
        case "no sum":
            last.with_suffix(".pt.sha256").unlink()
    run(tiny, folder, "--run.no-store", "--run.resume")
    assert f"{last} is damaged" in caplog.text
    assert trace(folder) == whole
    _assert_same(torch.load(last, weights_only=True), state)
    for path in (first, last):
        os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        run(tiny, folder, "--run.no-store", "--run.resume")


def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(tiny, tmp_path, monkeypatch):
    folder = run(tiny, tmp_path / "run", "--run.no-store")
    first, last = sorted((folder / "checkpoints").glob("*.pt"))
    os.truncate(last, 1000)
    (folder / "checkpoints" / "step_00000009.draft").write_bytes(b"of a write that was killed")
    ask_to_stop(monkeypatch, signal.SIGTERM, at=3)
    with pytest.raises(StoppedRun, match="after step 4, which is saved"):
        run(tiny, folder, "--run.no-store", "--run.resume")
    left = {path.name for path in (folder / "checkpoints").iterdir() if path.suffix != ".sha256"}
    assert left == {first.name, "step_00000004.pt", "step_00000006.damaged"}


def test_dirty_means_the_code_and_a_run_hides_itself(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def dirty_with(name, text="new"):
        file = tmp_path / name
        before = file.read_text() if file.exists() else None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        dirty = run_folder._git()["dirty"]
        file.unlink() if before is None else file.write_text(before)
        return dirty

    for name in ("recipes/distill.py", "pcd_hub/__init__.py", "pyproject.toml", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("code")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    monkeypatch.setattr(
        run_folder, "__file__", str(tmp_path / "pcd_hub" / "train" / "run_folder" / "folder.py")
    )
    assert run_folder._git() == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    for name in ("recipes/distill.py", "recipes/mine.py", "pcd_hub/a/b.py", "pyproject.toml"):
        assert dirty_with(name), name
    for name in ("README.md", "wandb/run/x", "dry-run/x/README.md", "mine.txt"):
        assert not dirty_with(name), name
    folder = run_folder.new_folder(tmp_path / "recipes" / "out", "x")
    (folder / "metrics.jsonl").write_text("")
    assert not run_folder._git()["dirty"]
    assert git("status", "--porcelain") == ""


def test_two_runs_that_begin_in_one_folder_are_told_apart(tiny, tmp_path, monkeypatch):
    begin = run_folder.new_folder

    def overtaken(*arguments):
        folder = begin(*arguments)
        (folder / "config.json").write_text("of the other")
        return folder

    monkeypatch.setattr(run_folder, "new_folder", overtaken)
    with pytest.raises(ConfigError, match="another run has just begun in .*run; name another"):
        run(tiny, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == "of the other"


def test_a_folder_that_cannot_be_made_is_said_on_every_process(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"cannot write .*file/run: Not a directory; name another --run.output"
    ):
        run(tiny, tmp_path / "file" / "run")


@pytest.mark.parametrize("place", ["/proc/foo", "/proc/self", "/dev/null/x", "a" * 300])
def test_an_output_folder_that_cannot_be_is_one_line(place):
    with pytest.raises(ConfigError, match=rf"(run's folder|output-dir) {place}: .*; name another"):
        run_folder.new_folder(Path(place), "x")


def test_the_sum_beside_a_checkpoint_is_that_of_sha256sum(tiny, tmp_path):
    folder = run(tiny, tmp_path / "run", "--run.no-store", "--run.keep-checkpoints=1")
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step_00000006.pt", "step_00000006.pt.sha256"}
    checked = subprocess.run(
        ["sha256sum", "--check", "step_00000006.pt.sha256"],
        cwd=folder / "checkpoints",
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0


def test_a_full_disk_is_said_and_the_last_checkpoint_stands(tiny, tmp_path, monkeypatch):
    save = torch.save
    calls = []

    def full(everything, path):
        calls.append(path)
        if len(calls) == 2:
            save(everything, path)
            os.truncate(path, 1000)
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        save(everything, path)

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(training, "save_views", no_room)
        with pytest.raises(CheckpointError, match="views.png .*No space left .*checkpoint is none"):
            run(tiny, tmp_path / "first", "--run.no-store")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(CheckpointError, match="No space left .* is step_00000003.pt"):
            run(tiny, folder, "--run.no-store")
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step_00000003.pt", "step_00000003.pt.sha256"}
    run(tiny, folder, "--run.no-store", "--run.resume")
    assert [line["step"] for line in trace(folder)] == list(range(6))


def ask_to_stop(patch: pytest.MonkeyPatch, signum: int, *, at: int) -> None:
    """While step ``at`` goes on."""
    rate = distill.learning_rate

    def received(step, *arguments):
        if step == at:
            signal.raise_signal(signum)
        return rate(step, *arguments)

    patch.setattr(distill, "learning_rate", received)


@pytest.mark.parametrize("at", [3, 5], ids=["in between", "at the end"])
def test_a_signal_saves_the_step_and_the_run_goes_on_as_if_never_stopped(
    tiny, tmp_path, monkeypatch, at
):
    whole = trace(run(tiny, tmp_path / "whole", "--run.no-store"))
    folder, handler = tmp_path / "stopped", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        ask_to_stop(patched, signal.SIGINT, at=at)
        with pytest.raises(StoppedRun, match=f"stopped by SIGINT after step {at + 1}") as stopped:
            run(tiny, folder, "--run.no-store")
    assert f"--run.resume --run.output-dir {folder}" in str(stopped.value)
    assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler, "what was before is back"
    assert not (folder / "record.json").exists()
    assert trace(run(tiny, folder, "--run.no-store", "--run.resume")) == whole
    assert (folder / "record.json").exists()


def test_a_signal_after_the_last_step_goes_to_the_handler_of_before():
    received = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: received.append(signum))
    try:
        with stopping.StopRequest() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert asked.signum == signal.SIGTERM
            assert not received
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stopped_run_exits_as_the_shell_expects(monkeypatch, capsys):
    def stop(arguments):
        raise StoppedRun(signal.SIGTERM, Path("runs/x"), step=7)

    with pytest.raises(SystemExit) as exited:
        command_line.run(stop)
    assert exited.value.code == 143
    assert capsys.readouterr().err == (
        "stopped by SIGTERM after step 7, which is saved; "
        "go on with the same command and --run.resume --run.output-dir runs/x\n"
    )


def test_an_interruption_before_the_first_step_is_one_line(monkeypatch, capsys):
    def interrupted(arguments):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit) as exited:
        command_line.run(interrupted)
    assert exited.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT; nothing more was saved\n"


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_after_the_training_says_how_to_write_the_result(capsys, signum):
    def stop(arguments):
        with places.finishing(Path("runs/x")):
            signal.raise_signal(signum)

    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as exited:
        command_line.run(stop)
    assert exited.value.code == 128 + signum
    assert signal.getsignal(signum) is before
    assert capsys.readouterr().err == (
        f"stopped by {signal.Signals(signum).name} after the training, which is saved; "
        "write its result with the same command and --run.resume --run.output-dir runs/x\n"
    )


def test_a_loader_process_that_dies_ends_as_one_line(capsys):
    def die(arguments):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. \nIt is ...")

    with pytest.raises(SystemExit, match="1"):
        command_line.run(die)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: DataLoader worker (pid 7) is killed by signal: Bus error; ")
    assert "--data.num-workers 0, and go on with --run.resume" in line


def test_the_queue_is_capped_at_half_the_data_set_and_it_is_said_once(tiny, tmp_path, caplog):
    folder = run(tiny, tmp_path / "run", "--run.no-store", "--method.queue-length=1000")
    assert caplog.text.count("queue of 1000 keys capped at 32, half the data set") == 1
    queue = torch.load(folder / "checkpoints" / "step_00000006.pt", weights_only=True)["queue"]
    assert len(queue["keys"]) == 32


def image_folder(path: Path, count: int, broken: int) -> Path:
    path.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 40), (number % 255, 80, 40)).save(path / f"{number:04}.png")
    for number in range(broken):
        (path / f"{number:04}.png").write_bytes(b"<html>")
    return path


def test_broken_images_are_skipped_counted_and_named(tiny, tmp_path, caplog):
    images = image_folder(tmp_path / "images", 120, broken=1)
    folder = run(
        tiny, tmp_path / "run", "--run.no-store", f"--data.source={images}", "--run.max-steps=15"
    )
    assert caplog.text.count("skipped a broken image") == 1
    assert "0000.png" in caplog.text
    assert "skipped 1 broken images in total" in caplog.text
    assert (folder / "record.json").exists()


def test_more_than_one_percent_broken_is_an_error(tiny, tmp_path):
    images = image_folder(tmp_path / "images", 120, broken=3)
    with pytest.raises(DataError, match=r"of 120 images cannot be read, expected at most 1%"):
        run(
            tiny,
            tmp_path / "run",
            "--run.no-store",
            f"--data.source={images}",
            "--run.max-steps=15",
        )


def test_mistakes_end_as_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, RECIPES / "distill.py", "--data.source=/no/such"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: no folder /no/such")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["loss", "gradient", "gradient after a checkpoint", "weights"])
def test_bad_numbers_stop_the_run_with_the_batch_and_the_last_checkpoint(
    tiny, tmp_path, monkeypatch, moment
):
    """At step 4 of 6; nothing is logged in between, and a checkpoint is due every third."""
    at = 3 if moment == "gradient after a checkpoint" else 4
    loss_of, count = distill_parts.pixel_info_nce, iter(range(100))

    def bad(*args, **kwargs):
        loss = loss_of(*args, **kwargs)
        if next(count) != at:
            return loss
        return loss * float("nan") if moment == "loss" else _NaNGradient.apply(loss)

    folder = tmp_path / "run"
    message = {
        "loss": "the loss is nan at step 4; lower --optim.lr-per-256",
        "gradient": "the norm of the gradient is nan at step 4; lower --optim.lr-per-256",
        "gradient after a checkpoint": "the norm of the gradient is nan at step 3; lower",
        "weights": "after step 5 the weight .* is not finite; lower",
    }[moment]
    with monkeypatch.context() as patched:
        if moment == "weights":
            at = 5
            patched.setattr(
                "pcd_hub.train.distill.learning_rate", lambda step, *_: 0.1 if step < 5 else 1e300
            )
        else:
            patched.setattr("pcd_hub.train.distill_parts.pixel_info_nce", bad)
        with pytest.raises(ConfigError, match=message):
            run(tiny, folder, "--run.log-every-steps=100")
    assert store.where("test_resnet.pcd") is None
    (last,) = (folder / "checkpoints").glob("*.pt")
    assert last.name == "step_00000003.pt"
    kept = torch.load(folder / "bad_batch_0.pt", weights_only=True)
    assert at in [batch["step"] for batch in kept]
    shapes = {tuple(part["views"].shape) for step in kept for part in step["batch"]}
    assert shapes == {(8, 2, 3, 32, 32)}
    run(tiny, folder, "--run.resume", "--run.log-every-steps=100")


class _NaNGradient(torch.autograd.Function):
    """A loss that looks right and a gradient that is none."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")
