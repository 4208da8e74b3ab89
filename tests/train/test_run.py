"""The training loop, in tiny distillations: resume, signals, full disks, values not finite."""

import errno
import json
import os
import signal

import pytest
import torch
from PIL import Image

from pcd_hub.errors import CheckpointError, ConfigError
from pcd_hub.train import distill, optimizers
from pcd_hub.train import run as training
from pcd_hub.train.configs import distill as configs
from pcd_hub.train.distillation import building
from pcd_hub.train.signals import StoppedRun
from pcd_hub.weights import store
from tests.train.conftest import assert_same, image_folder, run, trace

pytestmark = pytest.mark.usefixtures("no_pictures")


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("source", ["scenes:64", "stream"])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, monkeypatch, source):
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

    def die_at_step_4(self, step, loss, lr):
        if step == 4:
            raise _KilledError
        return measure(self, step, loss, lr)

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
    assert_same(one, other)


def test_a_finished_run_can_only_be_made_longer(tiny, tmp_path):
    folder, end = tmp_path / "run", ["--run.no-store", "--run.resume"]
    by_epochs = [*tiny, "--data.source=scenes:24", "--run.max-steps=None"]
    run(by_epochs, folder, "--run.no-store", "--optim.epochs=2")
    six = trace(folder)
    with pytest.raises(CheckpointError, match=r"another --optim.lr-per-256 \(0.02, now 0.03\)"):
        run(by_epochs, folder, *end, "--optim.epochs=2", "--optim.lr-per-256=0.03")
    with pytest.raises(CheckpointError, match="the checkpoint has 6 steps, expected at most 3,"):
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
        {"after_step": 6, "what": "--run.max-steps", "from": 6, "to": 12},
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
    assert len(torch.load(last, weights_only=True)["changes"]) == 3


@pytest.mark.parametrize("queue", [4, 64], ids=["short queue", "queue capped by the data"])
def test_a_resumed_run_detects_changed_data(tiny, tmp_path, queue):
    images = image_folder(tmp_path / "images", 16, broken=0)
    folder = tmp_path / "run"
    arguments = [*tiny, f"--data.source={images}", f"--method.queue-length={queue}"]
    run(arguments, folder, "--run.no-store")
    (folder / "checkpoints" / "step_00000006.pt").unlink()
    before = trace(folder)
    for number in range(16, 20):
        Image.new("RGB", (40, 40), (number, 9, 9)).save(images / f"{number:04}.png")
    resume = ["--run.no-store", "--run.resume"]
    with pytest.raises(
        CheckpointError, match="began with 16 files, .* found 20 files, .*accept-ch"
    ):
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


def test_a_full_disk_is_reported_and_keeps_the_last_checkpoint(tiny, tmp_path, monkeypatch):
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


def raise_signal_at(patch: pytest.MonkeyPatch, signum: int, *, at: int, times: int = 1) -> None:
    """Raise a signal during step ``at``."""
    rate = distill.learning_rate

    def received(step, *arguments):
        for _ in range(times if step == at else 0):
            signal.raise_signal(signum)
        return rate(step, *arguments)

    patch.setattr(distill, "learning_rate", received)


@pytest.mark.parametrize("at", [3, 5], ids=["in between", "at the end"])
def test_a_signal_saves_the_step_and_a_resumed_run_equals_an_uninterrupted_one(
    tiny, tmp_path, monkeypatch, at
):
    whole = trace(run(tiny, tmp_path / "whole", "--run.no-store"))
    folder, handler = tmp_path / "stopped", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        raise_signal_at(patched, signal.SIGINT, at=at)
        with pytest.raises(StoppedRun, match=f"stopped by SIGINT after step {at + 1}") as stopped:
            run(tiny, folder, "--run.no-store")
    assert f"pcd-hub distill --resume {folder}" in str(stopped.value)
    assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler, "what was before is back"
    assert not (folder / "record.json").exists()
    assert trace(run(tiny, folder, "--run.no-store", "--run.resume")) == whole
    assert (folder / "record.json").exists()


def test_a_damaged_checkpoint_does_not_count_as_kept(tiny, tmp_path, monkeypatch):
    folder = run(tiny, tmp_path / "run", "--run.no-store")
    first, last = sorted((folder / "checkpoints").glob("*.pt"))
    os.truncate(last, 1000)
    (folder / "checkpoints" / "step_00000009.draft").write_bytes(b"of a write that was killed")
    raise_signal_at(monkeypatch, signal.SIGTERM, at=3)
    with pytest.raises(StoppedRun, match="after step 4, which is saved"):
        run(tiny, folder, "--run.no-store", "--run.resume")
    left = {path.name for path in (folder / "checkpoints").iterdir() if path.suffix != ".sha256"}
    assert left == {first.name, "step_00000004.pt", "step_00000006.damaged"}


@pytest.mark.parametrize("moment", ["loss", "gradient", "gradient after a checkpoint", "weights"])
def test_values_that_are_not_finite_stop_the_run_and_keep_batch_and_checkpoint(
    tiny, tmp_path, monkeypatch, moment
):
    """At step 4 of 6; nothing is logged in between, and a checkpoint is due every third."""
    at = 3 if moment == "gradient after a checkpoint" else 4
    loss_of, count = building.pixel_info_nce, iter(range(100))

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
            patched.setattr("pcd_hub.train.distillation.building.pixel_info_nce", bad)
        with pytest.raises(ConfigError, match=message):
            run(tiny, folder, "--run.log-every-steps=100")
    assert store.where("test_resnet.pcd_quickstart") is None
    (last,) = (folder / "checkpoints").glob("*.pt")
    assert last.name == "step_00000003.pt"
    kept = torch.load(folder / "bad_batch_0.pt", weights_only=True)
    assert at in [batch["step"] for batch in kept]
    shapes = {tuple(part["views"].shape) for step in kept for part in step["batch"]}
    assert shapes == {(8, 2, 3, 32, 32)}
    run(tiny, folder, "--run.resume", "--run.log-every-steps=100")


class _NaNGradient(torch.autograd.Function):
    """A finite loss with a gradient of NaN."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")
