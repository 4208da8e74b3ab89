"""The scripts of recipes/slurm with two machines: a stand-in of SLURM, real launchers."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pcd_hub.train import distill
from tests.processes import free_ports
from tests.stress import kill_campaign
from tests.train.conftest import tiny, tiny_teacher, trace  # noqa: F401

pytestmark = pytest.mark.stress
SLURM = Path(__file__).parents[2] / "recipes" / "slurm"
OPTIONS = ["--student.arch=test_vit", "--method.head=linear", "--run.no-store"]
"""No BatchNorm, whose statistics are local to each process on CPUs."""

SRUN = """\
import os, subprocess, sys
assert sys.argv[1:4] == ["--kill-on-bad-exit=1", "--cpus-per-task", "1"], sys.argv
tasks = []
for number in range(int(os.environ["SLURM_NNODES"])):
    task = {"SLURM_NODEID": number, "SLURM_PROCID": number, "SLURM_LOCALID": 0}
    task |= {"SLURM_STEP_NUM_TASKS": os.environ["SLURM_NNODES"]}
    environ = os.environ | {name: str(value) for name, value in task.items()}
    tasks.append(subprocess.Popen(sys.argv[4:], env=environ))
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """\
import sys
assert sys.argv[1:] == ["show", "hostnames", "node[0-1]"], sys.argv
print("127.0.0.1\\nnode1")
"""


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """Return the environment of a batch script on two machines, which are this one."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, code in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(f"#!{sys.executable}\n{code}")
        (commands / name).chmod(0o755)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    paths = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    (port,) = free_ports(1)
    return environ | {
        "PATH": os.pathsep.join(paths),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "1",
        "MAIN_PORT": str(port),
    }


def submit(script: Path, arguments: list[str], environ: dict[str, str]) -> None:
    command = ["bash", str(script), *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def signal_the_tasks(script: psutil.Process, signum: int) -> None:
    """Signal all processes of the step, launchers and loaders included, as ``--signal`` does."""
    (srun,) = script.children()
    for process in srun.children(recursive=True):
        process.send_signal(signum)


@pytest.mark.timeout(600)
def test_the_signal_before_the_time_limit_saves_the_step(tiny, tmp_path, cluster):  # noqa: F811
    run = tmp_path / "run"
    rarely = ["--run.max-steps=100000", "--run.log-every-steps=100000"]
    command = ["bash", str(SLURM / "torchrun.sbatch"), *tiny, *OPTIONS, *rarely]
    script = subprocess.Popen(
        command, env=cluster | {"RUN": str(run)}, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (run / "pictures" / "views.png").exists() and script.poll() is None:
            time.sleep(0.05)
        signal_the_tasks(psutil.Process(script.pid), signal.SIGUSR1)
        _, output = script.communicate()
    finally:
        if script.poll() is None:
            kill_campaign.kill(script)
    assert script.returncode != 0
    (step,) = set(re.findall(r"stopped by SIGUSR1 after step (\d+), which is saved", output))
    assert (run / "checkpoints" / f"step_{int(step):08d}.pt").is_file()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["accelerate", "torchrun"])
def test_two_machines_give_what_one_process_gives(tiny, tmp_path, cluster, name):  # noqa: F811
    """Submitted again, the run continues."""
    arguments = [*tiny, *OPTIONS]
    script = SLURM / f"{name}.sbatch"
    environ = cluster | {"RUN": str(tmp_path / "run with a space")}
    submit(script, [*arguments, "--run.max-steps=2"], environ)
    distill.main([*arguments, "--run.max-steps=2", f"--run.output-dir={tmp_path / 'alone'}"])
    together = trace(Path(environ["RUN"]))
    for alone, shared in zip(trace(tmp_path / "alone"), together, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    if name == "accelerate":
        submit(script, [*arguments, "--run.max-steps=3"], environ)
        assert [line["step"] for line in trace(Path(environ["RUN"]))] == [0, 1, 2]


def test_without_a_folder_for_the_run_the_script_ends(cluster):
    for script in SLURM.glob("*.sbatch"):
        done = subprocess.run(
            ["bash", str(script), "pcd_r18"],
            env=cluster,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "RUN: the folder of the run, on a disk that all machines see" in done.stderr
