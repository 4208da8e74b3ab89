"""Signals as containers, SLURM and terminals send them: to the whole group, loaders and all."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pcd_hub.data.workers import STOP_SIGNALS
from pcd_hub.train import signals as stopping
from pcd_hub.train.configs import command_line
from pcd_hub.train.run_folder import preflight as places
from pcd_hub.train.signals import StoppedRun
from tests.train.segmentation.test_finetune import TINY as FINETUNE_SEG
from tests.train.segmentation.test_finetune import data  # noqa: F401

RECIPES = Path(__file__).parents[2] / "recipes"
LONG = ["--data.num-workers=2", "--run.max-steps=100000", "--run.log-every-steps=1"]


@contextlib.contextmanager
def at_work(command: list[str], first_sign: Path) -> Iterator[subprocess.Popen[str]]:
    """``command`` in a session of its own, from where it has written ``first_sign``."""
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        while not first_sign.exists() and process.poll() is None:
            time.sleep(0.01)
        yield process
    finally:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.communicate()


@pytest.mark.parametrize(("recipe", "name"), [("distill", "SIGTERM"), ("finetune_seg", "SIGUSR1")])
def test_a_signal_to_the_whole_group_saves_the_step(tiny, tmp_path, request, recipe, name):
    if recipe == "distill":
        arguments = [*tiny, "--run.no-store"]
    else:
        arguments = [*FINETUNE_SEG, request.getfixturevalue("data")]
    folder, signum = tmp_path / "run", getattr(signal, name)
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *arguments, *LONG]
    with at_work([*command, f"--run.output-dir={folder}"], folder / "metrics.jsonl") as process:
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        os.killpg(process.pid, signum)
        _, output = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in output, output
    (step,) = set(re.findall(rf"stopped by {name} after step (\d+), which is saved", output))
    assert (folder / "checkpoints" / f"step_{int(step):08d}.pt").is_file()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_a_signal_after_the_last_step_goes_to_the_previous_handler():
    received = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: received.append(signum))
    try:
        with stopping.StopRequest() as request:
            signal.raise_signal(signal.SIGTERM)
            assert request.signum == signal.SIGTERM
            assert not received
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stopped_run_exits_with_the_shells_code(monkeypatch, capsys):
    def stop(arguments):
        raise StoppedRun(signal.SIGTERM, Path("runs/x"), step=7)

    with pytest.raises(SystemExit) as exited:
        command_line.run_main(stop)
    assert exited.value.code == 143
    assert capsys.readouterr().err == (
        "stopped by SIGTERM after step 7, which is saved; "
        "continue with the same command and --run.resume --run.output-dir runs/x\n"
    )


def test_an_interrupt_before_the_first_step_prints_one_line(monkeypatch, capsys):
    def interrupted(arguments):
        signal.raise_signal(signal.SIGINT)

    # A shell's background job ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as exited:
            command_line.run_main(interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert exited.value.code == 130
    assert capsys.readouterr().err == (
        "stopped by SIGINT; nothing more was saved; the same command starts again\n"
    )


@pytest.mark.usefixtures("without_nohup")
@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_after_the_training_prints_how_to_write_the_result(capsys, signum):
    def stop(arguments):
        with places.finishing(Path("runs/x")):
            signal.raise_signal(signum)

    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as exited:
        command_line.run_main(stop)
    assert exited.value.code == 128 + signum
    assert signal.getsignal(signum) is before
    assert capsys.readouterr().err == (
        f"stopped by {signal.Signals(signum).name} after the training, which is saved; "
        "write its result with the same command and --run.resume --run.output-dir runs/x\n"
    )


def test_a_killed_loader_process_prints_one_line(capsys):
    def die(arguments):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. \nIt is ...")

    with pytest.raises(SystemExit, match="1"):
        command_line.run_main(die)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: DataLoader worker (pid 7) is killed by signal: Bus error; ")
    assert "--data.num-workers 0, then resume the run" in line
