"""Tiny runs of the real recipes."""

import errno
import functools
import gc
import importlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from pcd_hub.errors import CheckpointError, ConfigError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.evaluate.segmentation import LinearProbe
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.report.page.run_folder import Notes
from pcd_hub.train import distill
from pcd_hub.train.monitors.loss import LossMonitor
from pcd_hub.train.monitors.progress import Progress
from tests.processes import free_ports, start_processes


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A teacher of 0.5 M parameters with a trained head's shape, with random weights."""
    torch.manual_seed(7)
    backbone = timm.create_model("test_resnet", num_classes=0)
    head = nn.Sequential(nn.Linear(96, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    folder = tmp_path_factory.mktemp("teacher")
    save_teacher(
        folder, backbone.state_dict(), head, {"architecture": "test_resnet", "license": "mit"}
    )
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_teacher) -> list[str]:
    """Return the arguments of a run that takes seconds."""
    return [
        f"--teacher.source=local-dir:{tiny_teacher}",
        "--teacher.image-size=None",
        "--student.arch=test_resnet",
        "--data.source=scenes:64",
        "--data.image-size=32",
        "--data.num-workers=0",
        "--data.min-crop-area=0.2",
        "--data.max-crop-area=1.0",
        "--method.temperature=0.2",
        "--method.head=mocov3",
        "--method.queue-length=32",
        "--method.head-width=24",
        "--optim.name=adamw",
        "--speed.precision=fp32",
        "--optim.lr-per-256=0.02",
        "--optim.global-batch-size=8",
        "--run.max-steps=6",
        "--run.log-every-steps=1",
        "--run.checkpoint-every-steps=3",
        "--probe-scenes=0",
    ]


@pytest.fixture
def short_probe(monkeypatch):
    """Shorten the closing probe; its scores are tested in tests/evaluate."""
    short = functools.partialmethod(LinearProbe.run, steps=20)
    monkeypatch.setattr(LinearProbe, "run", short)


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures at a run's end, a third of a tiny run."""

    def nothing(*_, **__):
        pass

    patch.setattr("pcd_hub.train.results.weight.draw_feature_maps", nothing)
    patch.setattr("pcd_hub.train.results.weight.save_training_curve", nothing)
    patch.setattr("pcd_hub.train.results.weight.draw_own_images", lambda _: Notes())


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out pictures in tests of something else."""
    leave_out_pictures(monkeypatch)


@pytest.fixture
def passes(monkeypatch) -> list[str]:
    """Return the descriptions of the progress bars that a run has completed."""
    ended = []

    def bar(steps, *, desc, **_):
        yield from steps
        ended.append(desc)

    monkeypatch.setattr("pcd_hub.evaluate.progress.tqdm", bar)
    return ended


@pytest.fixture
def bf16(monkeypatch):
    """Set the variable of ``accelerate launch --mixed_precision bf16``; a process reads it once."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def trace(folder: Path) -> list[dict]:
    """Return the lines of metrics.jsonl, without the timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timings = {"images_per_s", "data_wait"}
    return [{key: value for key, value in line.items() if key not in timings} for line in lines]


def check_a_resumed_run(
    main: Callable[[list[str]], None],
    arguments: list[str],
    norm: str,
    file: Path,
    *,
    of_both_splits: bool,
) -> None:
    """Check that a run resumed from a checkpoint equals an uninterrupted one.

    On changed data it continues only if that is accepted, here to a fifth step as well.

    Args:
        main: Entry point of a recipe that trains on labels.
        arguments: Arguments with the output folder last, and checkpoints every two steps.
        norm: An option that may not change between the two runs.
        file: A json file of the data.
        of_both_splits: Whether the test images depend on that file too.
    """
    folder = Path(arguments[-1].removeprefix("--run.output-dir="))
    check_that_places_are_tried(main, arguments)
    main(arguments)
    check_that_a_lost_end_is_said(main, arguments, "pcd_hub.evaluate.results.Evaluation.save")
    whole, scores = trace(folder), Evaluation.load(folder).scores
    last = folder / "checkpoints" / "step_00000004.pt"
    weights = torch.load(last, weights_only=True)["network"]
    last.unlink()
    main([*arguments, "--run.resume"])
    assert trace(folder) == whole
    assert len(whole) == 4
    again = torch.load(last, weights_only=True)["network"]
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert Evaluation.load(folder).scores == scores
    with pytest.raises(CheckpointError, match=f"written with another {norm}"):
        main([*arguments, f"{norm}=frozen", "--run.resume"])
    file.write_text(file.read_text().replace("moon", "mars") + " ")
    longer = [*arguments, "--run.max-steps=5", "--run.resume"]
    with pytest.raises(CheckpointError, match="the data changed after step 4: the run began with"):
        main(longer)
    assert trace(folder) == whole
    main([*longer, "--run.accept-changed-data"])
    assert trace(folder)[:4] == whole
    assert [line["step"] for line in trace(folder)] == list(range(5))
    found = Evaluation.load(folder)
    changed = [change["what"] for change in found.details["changed_at_resume"]]
    assert changed == ["--run.max-steps", "data", *(["test data"] if of_both_splits else [])]
    assert "; resumed after step 4 with another --run.max-steps (4, now 5); res" in found.protocol


def check_that_places_are_tried(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Check that no run starts without a folder for temporary files."""
    with (
        mock.patch("tempfile.tempdir", __file__),
        pytest.raises(ConfigError, match="the folder of temporary files .*: Not a directory"),
    ):
        main(arguments)


def check_that_a_lost_end_is_said(
    main: Callable[[list[str]], None], arguments: list[str], writes: str
) -> None:
    """Check that a finished run whose result cannot be written reports how to write it later."""
    full = OSError(errno.ENOSPC, "No space left on device")
    message = (
        "the training is complete, but its result .*No space left .*; (the same command and "
        "--run.resume --run.output-dir|pcd-hub distill --resume) .* writes it, without further"
    )
    with mock.patch(writes, side_effect=full), pytest.raises(CheckpointError, match=message):
        main([*arguments, "--run.resume"])


class _Reads(TorchDispatchMode):
    """Count the values that Python reads from the device: each would make a GPU wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class _EnoughError(Exception):
    pass


def check_that_no_step_reads_back(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Check that no value is read from an accelerator between two logged steps.

    Args:
        main: Entry point of a recipe that trains.
        arguments: Arguments of a tiny run.
    """
    record_step, counts = LossMonitor.record_step, []

    def one_step_late(self, *args, **kwargs):
        self._delay = 1
        counts.append(reads.count)
        if len(counts) == 6:
            raise _EnoughError
        return record_step(self, *args, **kwargs)

    rarely = ["--run.log-every-steps=100", "--run.checkpoint-every-steps=100"]
    with pytest.MonkeyPatch.context() as patch, _Reads() as reads:
        patch.setattr(LossMonitor, "record_step", one_step_late)
        with pytest.raises(_EnoughError):
            main([*arguments, "--run.max-steps=7", *rarely])  # the last is logged
        assert counts[1:] == [counts[1]] * 5
        float(torch.ones(1))
        assert reads.count == counts[-1] + 1, "the counter works"


def run_in_two_processes(recipe: ModuleType, arguments: list[str], *, without: str) -> None:
    """Run a recipe in two spawned processes, as ``accelerate launch --num_processes 2``.

    Args:
        recipe: Module of the recipe.
        arguments: Its command line.
        without: Function of the module that draws, which takes longer than a tiny run.
    """
    (port,) = free_ports(1)
    start_processes(_one_process, (port, recipe.__name__, arguments, without))


def watch_the_end(*keep: tuple[ModuleType, str]) -> None:
    """Make it an error if a wrapped network outlives its process group.

    The same for a process group that is still open when the main process works alone.

    Args:
        keep: Functions that the main process calls alone: module and name.
    """
    end = Accelerator.end_training

    def watched(self: Accelerator) -> None:
        left = [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
        assert not left, "a wrapped network outlives its process group"
        end(self)

    Accelerator.end_training = watched
    for module, name in keep:
        setattr(module, name, _alone(getattr(module, name)))


def _alone(keep: Callable[..., None]) -> Callable[..., None]:
    def watched(*args: Any, **kwargs: Any) -> None:
        assert not torch.distributed.is_initialized(), "the others wait for the main process"
        keep(*args, **kwargs)

    return watched


def _one_process(_: int, port: int, recipe: str, arguments: list[str], without: str) -> None:
    os.environ["MASTER_PORT"] = str(port)
    module: Any = importlib.import_module(recipe)
    setattr(module, without, lambda *_: None)
    watch_the_end((module, "save_result"))
    module.main(arguments)


def run(arguments: list[str], folder: Path, *more: str) -> Path:
    """Distil into ``folder``, and return it."""
    distill.main([*arguments, f"--run.output-dir={folder}", *more])
    return folder


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    """Load a checkpoint."""
    return torch.load(folder / "checkpoints" / f"step_{step:08}.pt", weights_only=True)


class _KilledError(Exception):
    pass


def resumed(arguments: list[str], folder: Path, patch: pytest.MonkeyPatch, *, at: int) -> Path:
    """Kill a run when it logs the step ``at``, one step beyond its last checkpoint; resume it."""
    measure = Progress.measure

    def dies(self, number, loss, lr):
        if number == at:
            raise _KilledError
        return measure(self, number, loss, lr)

    with patch.context() as killing:
        killing.setattr(Progress, "measure", dies)
        with pytest.raises(_KilledError):
            run(arguments, folder)
    torch.manual_seed(99)
    return run(arguments, folder, "--run.resume")


def assert_same(one: Any, other: Any) -> None:
    """Compare two checkpoints bit by bit."""
    assert type(one) is type(other)
    match one:
        case torch.Tensor():
            assert torch.equal(one, other)
        case dict():
            assert one.keys() == other.keys()
            for key in one:
                assert_same(one[key], other[key])
        case list() | tuple():
            for a, b in zip(one, other, strict=True):
                assert_same(a, b)
        case _:
            assert one == other


def image_folder(path: Path, count: int, broken: int) -> Path:
    """Write PNG images, the first of them broken."""
    path.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 40), (number % 255, 80, 40)).save(path / f"{number:04}.png")
    for number in range(broken):
        (path / f"{number:04}.png").write_bytes(b"<html>")
    return path


@pytest.fixture
def without_nohup() -> Iterator[None]:
    """Let a hangup stop a run even if the tests themselves were started with ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
