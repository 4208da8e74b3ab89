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
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in said, said
    (step,) = set(re.findall(rf"stopped by {name} after step (\d+), which is saved", said))
    assert (folder / "checkpoints" / f"step_{int(step):08d}.pt").is_file()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
