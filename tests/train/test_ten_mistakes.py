"""The mistakes that most people make: one line with the remedy, and nothing is lost.

The expected lines are those of docs/when_something_goes_wrong.md, in which ``...`` stands for any
text.
"""

import errno
import io
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import constants

from pcd_hub.errors import CheckpointError
from pcd_hub.train import distill
from pcd_hub.train.distillation import memory
from pcd_hub.train.run_folder import checkpoints
from pcd_hub.train.signals import StoppedRun, StopRequest
from tests.cli.outcome import outcome
from tests.hub.surroundings import settle
from tests.train.conftest import image_folder, run, trace
from tests.train.test_run import raise_signal_at

PAGE = Path(__file__).parents[2] / "docs" / "when_something_goes_wrong.md"
ROWS = dict(
    re.findall(r"^\| ([^|`]+?) \| `([^`]+)` \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
)
"""The line that is printed, by mistake."""


def check(mistake: str, line: str) -> None:
    """Compare the line that was printed with that of the page."""
    pattern = ".+".join(map(re.escape, ROWS[mistake].split("...")))
    assert "\n" not in line
    assert re.fullmatch(pattern, line), f"{line!r} is not {ROWS[mistake]!r}"


@pytest.fixture(autouse=True)
def _precision_of_each_run():
    """A process keeps the precision of its first run."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder of images, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return image_folder(tmp_path / "photos", 12, broken=0)


@pytest.fixture
def refuse(capsys, monkeypatch, tmp_path):
    """Run ``pcd-hub distill``, and return its one line; the images may not be surveyed before."""

    def survey(*_, **__):
        raise AssertionError("the images are surveyed")

    def refuse(*words: str, code: int = 1) -> str:
        ended = outcome(capsys, "distill", *words)
        assert ended.code == code, ended.err
        assert not (tmp_path / "runs").exists()
        (line,) = ended.err.splitlines()
        return line.removeprefix("error: ")

    monkeypatch.setattr("pcd_hub.train.own_images.surveyed.survey", survey)
    return refuse


@pytest.fixture
def no_network(monkeypatch):
    """An address at which nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    yield
    settle()


def test_wrong_folder(photos, refuse):
    check("wrong folder", refuse("photo", code=2))


def test_wrong_teacher(photos, refuse):
    check("wrong teacher", refuse("photos", "--teacher=resnet50"))
    check("wrong weights of a teacher", refuse("photos", "--teacher=timm:resnet50.a1_in1kk"))
    assert "timm has no model 'resnet51'; did you" in refuse("photos", "--teacher=timm:resnet51")
    assert "no teacher folder nowhere; " in refuse("photos", "--teacher=local-dir:nowhere")
    assert "no teacher file nowhere; " in refuse("photos", "--teacher=timm:resnet18:nowhere")


def test_no_disk_space(photos, refuse, tmp_path, monkeypatch):
    class Usage:
        def __init__(self, path):
            self.free = 20_000_000 if path == tmp_path else 10**12

    monkeypatch.setattr("shutil.disk_usage", Usage)
    check("no disk space at the start", refuse("photos", "--teacher=quickstart", code=2))


def test_no_disk_space_during_the_run(tiny, tmp_path, monkeypatch):
    folder, write = tmp_path / "run", checkpoints.write_checkpoint
    whole = trace(run(tiny, tmp_path / "whole", "--run.no-store"))

    def full(state, file):
        if state["step"] == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(state, file)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_checkpoint", full)
        with pytest.raises(CheckpointError) as error:
            run(tiny, folder, "--run.no-store")
    check("no disk space during the run", str(error.value))
    assert trace(run(tiny, folder, "--run.no-store", "--run.resume")) == whole


def test_no_disk_space_for_a_teacher(photos, refuse, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pcd_hub.models.teacher_loading.create_pretrained", full)
    line = refuse("photos", "--teacher=timm:resnet50.a1_in1k")
    assert "No space left on device. It is downloaded to " in line
    assert line.endswith("make room there, or set HF_HUB_CACHE to another folder")


def test_no_write_permission(photos, refuse, monkeypatch):
    def denied(*_, **__):  # root may write anywhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pcd_hub.files.writable.tempfile.TemporaryDirectory", denied)
    check("no write permission", refuse("photos", "--teacher=quickstart", code=2))


def test_no_network(photos, refuse, no_network):
    check("no network", refuse("photos"))
    named = refuse("photos", "--teacher=timm:resnet50.a1_in1k")
    assert "cannot load timm:resnet50.a1_in1k: the Hub does not answer" in named
    assert named.endswith("or use a file (local-dir:DIR, LAYOUT:FILE)")


def test_too_few_images(photos, capsys):
    for file in sorted(photos.iterdir())[:5]:
        file.unlink()
    ended = outcome(capsys, "distill", "photos", "--teacher=quickstart")
    check("too few images", ended.err.strip().removeprefix("error: "))
    assert ended.code == 1
    assert not Path("runs").exists()


def test_batch_larger_than_the_set(photos, refuse):
    words = ["photos", "--teacher=quickstart", "--optim.global-batch-size=13"]
    check("batch larger than the set", refuse(*words, code=2))


def test_batch_larger_than_the_memory(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10_000)
    run(tiny, tmp_path / "run", "--run.max-steps=1", "--run.no-store")
    (line,) = (one.getMessage() for one in caplog.records if one.module == "memory")
    check("batch larger than the memory", line)


def test_memory_that_is_exhausted(tiny, tmp_path, monkeypatch, capsys):
    def step(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")

    monkeypatch.setattr(distill, "training_step", step)
    ended = outcome(capsys, "distill", *tiny, f"--output-dir={tmp_path / 'run'}")
    line = ended.err.strip().splitlines()[-1]
    assert line.startswith("error: out of memory (CUDA out of memory")
    assert line.endswith("or raise --optim.accumulation-steps, which keeps the batch")


def test_ctrl_c(tiny, tmp_path, monkeypatch, capsys):
    raise_signal_at(monkeypatch, signal.SIGINT, at=1)
    with pytest.raises(StoppedRun) as stopped:
        run(tiny, tmp_path / "run")
    check("Ctrl-C", str(stopped.value))
    assert "a second Ctrl-C ends the run without it" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "step_00000002.pt").is_file()


@pytest.mark.parametrize(("at", "saved"), [(4, 3), (1, 0)])
def test_ctrl_c_twice(tiny, tmp_path, monkeypatch, at, saved):
    """In the middle of a step; a checkpoint is due every third."""
    folder, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        raise_signal_at(patched, signal.SIGINT, at=at, times=2)
        with pytest.raises(StoppedRun) as stopped:
            run(tiny, folder, "--run.no-store")
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.value.exit_code == 130
    if not saved:
        assert str(stopped.value).endswith(
            "first checkpoint; start the run again, in another folder"
        )
        return
    check("Ctrl-C twice", str(stopped.value))
    whole = trace(run(tiny, tmp_path / "whole", "--run.no-store"))
    assert "after step 3; " in str(stopped.value)
    assert trace(run(tiny, folder, "--run.no-store", "--run.resume")) == whole


class ClosedTerminal(io.TextIOBase):
    """Standard error after its window is closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fileno(self) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.usefixtures("without_nohup")
def test_window_closed(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        raise_signal_at(patched, signal.SIGHUP, at=1)
        patched.setattr(sys, "stderr", ClosedTerminal())
        with pytest.raises(StoppedRun) as stopped:
            run(tiny, tmp_path / "run")
    check("window closed", str(stopped.value))
    assert stopped.value.exit_code == 129
    assert (tmp_path / "run" / "checkpoints" / "step_00000002.pt").is_file()


def test_nohup_keeps_a_run_going():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.signum == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_same_output_folder_twice(photos, refuse, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"student": {}}')
    words = ["photos", "--teacher=quickstart", "--output-dir=mine"]
    check("same output folder twice", refuse(*words, code=2))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.json"]


def test_every_row_of_the_page_is_compared():
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(ROWS) == 14
    assert set(re.findall(r'check\(\s*"([^"]+)"', source)) == set(ROWS)
