"""Kill and resume training runs at random times, and compare them with an uninterrupted run.

    python -m tests.stress.kill_campaign --kills 50
    python -m tests.stress.kill_campaign --kills 50 --processes 2

A small distillation that saves a checkpoint at every step is killed with SIGKILL, including ranks
and loader processes, and resumed until it is complete. Then the loss of every step and every tensor
of the last checkpoint (weights, optimizer, queue, random state) must be bit-equal to those of the
uninterrupted run. Kills happen in the first seconds after training starts, as earlier ones change
nothing. Prints one line per run; the exit status is 1 if anything differs.
"""

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from torch import nn

from pcd_hub.models.teacher_folder import save_teacher

ROOT = Path(__file__).parents[2]


def command(folder: Path, teacher: Path, options: argparse.Namespace) -> list[str]:
    """Return the command of a small run that writes checkpoints most of the time."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    return [
        sys.executable,
        *([*launcher, str(options.processes)] if options.processes > 1 else []),
        str(ROOT / "recipes" / "distill.py"),
        f"--teacher.source=local-dir:{teacher}",
        "--teacher.image-size=None",
        "--student.arch=test_resnet",
        "--data.source=scenes:4000",
        "--data.image-size=32",
        "--data.num-workers=1",
        "--method.queue-length=2000",
        "--optim.global-batch-size=8",
        f"--run.max-steps={options.steps}",
        "--run.log-every-steps=1",
        "--run.checkpoint-every-steps=1",
        "--run.no-store",
        "--probe-scenes=0",
        f"--run.output-dir={folder}",
    ]


def small_teacher(folder: Path) -> Path:
    """Save a randomly initialised teacher."""
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0)
    head = nn.Sequential(nn.Linear(96, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 256))
    save_teacher(folder, backbone.state_dict(), head, {"architecture": "test_resnet"})
    return folder


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a process and capture its stderr."""
    return subprocess.Popen(arguments, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def still_runs_after(process: subprocess.Popen[str], folder: Path, seconds: float) -> bool:
    """Wait until the process writes metrics and then ``seconds`` more; False if it has ended."""
    metrics = folder / "metrics.jsonl"
    before = modified_ns(metrics)
    while modified_ns(metrics) == before and process.poll() is None:
        time.sleep(0.001)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is None


def modified_ns(file: Path) -> int:
    """Return the modification time in ns; 0 if the file does not exist."""
    return file.stat().st_mtime_ns if file.exists() else 0


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its descendants; torchrun gives every rank its own process group."""
    launcher = psutil.Process(process.pid)
    launcher.suspend()  # or it would start new processes
    for each in [*launcher.children(recursive=True), launcher]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()  # returns when the last process has closed stderr


def has_checkpoint(folder: Path) -> bool:
    """Check whether there is a checkpoint to resume from."""
    return any((folder / "checkpoints").glob("step_*.pt"))


def run_with_kills(
    arguments: list[str], folder: Path, kills: int, rng: random.Random
) -> tuple[int, int]:
    """Run to the end with at most ``kills`` kills.

    Returns:
        The number of kills, and how many of them were during the write of a checkpoint.
    """
    killed = during_write = 0
    while True:
        resume = ["--run.resume"] if has_checkpoint(folder) else []
        if not resume and folder.exists():  # killed before its first checkpoint
            shutil.rmtree(folder)
        before = time.time_ns()
        process = start([*arguments, *resume])
        if killed < kills and still_runs_after(process, folder, rng.uniform(0, 3)):
            kill(process)
            killed += 1
            drafts = folder.glob("checkpoints/*.draft")
            during_write += any(modified_ns(draft) > before for draft in drafts)
            continue
        _, stderr = process.communicate()
        if process.returncode:
            raise SystemExit(f"a resumed run failed:\n{stderr[-3000:]}")
        return killed, during_write


def trace(folder: Path) -> list[Any]:
    """Read step, loss and learning rate of every step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["lr"]) for line in lines]


def last_checkpoint(folder: Path) -> dict[str, Any]:
    """Load the last checkpoint."""
    return torch.load(max((folder / "checkpoints").glob("step_*.pt")), weights_only=True)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Return the paths at which two checkpoints are not bit-equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            difference
            for key in {**one, **other}
            for difference in differences(one.get(key), other.get(key), f"{path}.{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [each for n, (a, b) in pairs for each in differences(a, b, f"{path}[{n}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    return [] if one == other else [path]


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        teacher = small_teacher(Path(scratch) / "teacher")
        reference = Path(scratch) / "reference"
        run_with_kills(command(reference, teacher, options), reference, 0, rng)
        kills = during_write = runs = 0
        while kills < options.kills:
            folder = Path(scratch) / f"run{runs}"
            arguments = command(folder, teacher, options)
            killed, in_write = run_with_kills(
                arguments, folder, min(10, options.kills - kills), rng
            )
            unequal = differences(last_checkpoint(reference), last_checkpoint(folder))
            if trace(folder) != trace(reference) or unequal:
                raise SystemExit(f"run {runs} differs after {killed} kills: {unequal[:5]}")
            runs, kills, during_write = runs + 1, kills + killed, during_write + in_write
            print(f"run {runs}: {killed} kills, {in_write} during a write; bit-equal", flush=True)
    print(
        f"{kills} kills of {options.processes} processes, {during_write} during a write, "
        f"{runs} runs: all bit-equal"
    )


if __name__ == "__main__":
    main()
