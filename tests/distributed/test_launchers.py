"""Launchers of the README: two machines on the loopback; a rank that dies or is stopped."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from pcd_hub.errors import CheckpointError, ConfigError
from pcd_hub.train import distill
from pcd_hub.train.run_folder import checkpoints
from pcd_hub.train.run_folder import folder as run_folder
from tests.processes import free_ports
from tests.stress import kill_campaign
from tests.train.conftest import tiny, tiny_teacher, trace  # noqa: F401

pytestmark = pytest.mark.stress
DISTILL = str(Path(__file__).parents[2] / "recipes" / "distill.py")
OPTIONS = ["--student.arch=test_vit", "--method.head=linear", "--run.no-store"]
"""No BatchNorm, whose statistics are local to each process on CPUs."""


LAUNCHES = {
    "script": [DISTILL],
    "accelerate launch": ["-m", "accelerate.commands.launch", DISTILL],
    "accelerate launch -m": ["-m", "accelerate.commands.launch", "-m", "pcd_hub.train.distill"],
    "pcd-hub": ["-m", "pcd_hub", "distill"],
}


@pytest.mark.timeout(600)
def test_every_way_to_start_is_the_same_run(tiny, tmp_path):  # noqa: F811
    environ = os.environ | {"OMP_NUM_THREADS": "2"}  # other threads sum in another order
    arguments = [*tiny, "--run.max-steps=2", "--run.no-store", "--run.output-dir=run"]
    for name, command in LAUNCHES.items():
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=tmp_path / name,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    script, *others = (trace(tmp_path / name / "run") for name in LAUNCHES)
    assert len(script) == 2
    assert others == [script] * 3


@pytest.mark.timeout(600)
def test_two_machines_give_what_one_process_gives(tiny, tmp_path):  # noqa: F811
    arguments = [*tiny, *OPTIONS, "--run.max-steps=2"]
    distill.main([*arguments, f"--run.output-dir={tmp_path / 'alone'}"])
    (port,) = free_ports(1)
    machines = []
    for rank in (0, 1):  # each with a disk of its own
        disk = tmp_path / f"machine{rank}"
        disk.mkdir()
        launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_machines=2"]
        launcher += ["--num_processes=2", f"--machine_rank={rank}"]
        launcher += ["--main_process_ip=127.0.0.1", f"--main_process_port={port}"]
        command = [sys.executable, "-m", *launcher, DISTILL, *arguments, "--run.output-dir=run"]
        machines.append(subprocess.Popen(command, cwd=disk, stderr=subprocess.PIPE, text=True))
    try:
        for machine in machines:
            _, output = machine.communicate()
            assert machine.returncode == 0, output
    finally:
        for machine in machines:
            if machine.poll() is None:
                kill_campaign.kill(machine)
    together = trace(tmp_path / "machine0" / "run")
    assert not (tmp_path / "machine1" / "run").exists()
    for alone, shared in zip(trace(tmp_path / "alone"), together, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_a_checkpoint_on_another_machines_disk_is_reported(tiny, tmp_path, monkeypatch):  # noqa: F811
    arguments = [*tiny, *OPTIONS, "--run.max-steps=1", f"--run.output-dir={tmp_path / 'run'}"]
    distill.main(arguments)
    monkeypatch.setattr(checkpoints, "last_undamaged", lambda _: tmp_path / "elsewhere.pt")
    with pytest.raises(CheckpointError, match=r"elsewhere.pt is not on this machine; to resume"):
        distill.main([*arguments, "--run.resume"])


class TwoRanks(NamedTuple):
    launcher: subprocess.Popen[str]
    all: list[psutil.Process]
    second: psutil.Process

    def stderr(self) -> str:
        return self.launcher.communicate(timeout=60)[1]


@contextlib.contextmanager
def two_ranks_at_work(arguments: list[str]) -> Iterator[TwoRanks]:
    """Start two ranks under torchrun, wait for their first step, and end them at the end."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = kill_campaign.start([sys.executable, "-m", *launcher, DISTILL, *arguments])
    folder = Path(arguments[-1].removeprefix("--run.output-dir="))
    try:
        while not (folder / "pictures" / "views.png").exists() and process.poll() is None:
            time.sleep(0.01)
        launched = psutil.Process(process.pid)
        (second,) = (rank for rank in launched.children() if rank.environ().get("RANK") == "1")
        yield TwoRanks(process, launched.children(recursive=True), second)
    finally:
        if process.poll() is None:
            kill_campaign.kill(process)


@pytest.mark.timeout(600)
def test_a_rank_that_dies_ends_the_others_with_its_reason(tiny, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    arguments = [*tiny, *OPTIONS, "--run.max-steps=100000", f"--run.output-dir={folder}"]
    with two_ranks_at_work(arguments) as ranks:
        with pytest.raises(ConfigError, match=r"another process is running in .*run; wait for it"):
            distill.main([*arguments, "--run.resume", "--run.max-steps=1"])
        ranks.second.kill()
        output = ranks.stderr()
    assert ranks.launcher.returncode == 1
    assert "Signal 9 (SIGKILL) received by PID" in output
    _, alive = psutil.wait_procs(ranks.all, timeout=30)
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive)
    run_folder._lock(folder / "config.json")  # free again


def to_one_rank(ranks: TwoRanks) -> None:
    ranks.second.send_signal(signal.SIGTERM)


def to_the_launcher(ranks: TwoRanks) -> None:
    """Send it as containers and `kill` do; torchrun forwards it, and kills after 30 s."""
    ranks.launcher.send_signal(signal.SIGTERM)


def to_all(ranks: TwoRanks) -> None:
    """Send it to all processes of a step, loaders and launchers included, as SLURM does."""
    for each in [*ranks.all, ranks.launcher]:
        each.send_signal(signal.SIGUSR1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("send", [to_one_rank, to_the_launcher, to_all])
def test_a_signal_saves_the_step_and_ends_all(tiny, tmp_path, send):  # noqa: F811
    """Soon, however seldom a line is logged, and with processes that load."""
    folder = tmp_path / "run"
    rarely = ["--data.num-workers=1", "--run.max-steps=100000", "--run.log-every-steps=100000"]
    with two_ranks_at_work([*tiny, *OPTIONS, *rarely, f"--run.output-dir={folder}"]) as ranks:
        send(ranks)
        before = time.monotonic()
        output = ranks.stderr()
        assert time.monotonic() - before < 25
    name = "SIGUSR1" if send is to_all else "SIGTERM"
    (step,) = set(re.findall(rf"stopped by {name} after step (\d+), which is saved", output))
    assert (folder / "checkpoints" / f"step_{int(step):08d}.pt").is_file()
    assert "DataLoader worker" not in output
