"""Kill a run at random moments, start it again, and hold its end against one that never stopped.

    python scripts/kill_campaign.py --kills 50
    python scripts/kill_campaign.py --kills 50 --processes 2

A small distillation that writes a checkpoint after every step is killed with SIGKILL, ranks,
loaders and all, resumed with the same command, and so on to its end; then the loss of every step
and every tensor of the last checkpoint (weights, optimizer, queue, random state) are compared bit
by bit. The moments lie within a few seconds from where a process goes on from its checkpoint; what
it does before changes nothing. Prints one line a run, and fails if anything differs.
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

ROOT = Path(__file__).parents[1]


def command(folder: Path, teacher: Path, options: argparse.Namespace) -> list[str]:
    """The recipe with everything small but the checkpoints, so that many kills meet a write."""
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
    """At random start."""
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0)
    head = nn.Sequential(nn.Linear(96, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 256))
    save_teacher(folder, backbone.state_dict(), head, {"architecture": "test_resnet"})
    return folder


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """With the recipe's threads: the cores, shared by its processes."""
    return subprocess.Popen(  # noqa: S603
        arguments,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def comes_to(process: subprocess.Popen[str], folder: Path, seconds: float) -> bool:
    """Wait that long from where the process touches the metrics; False if it ends before."""
    metrics = folder / "metrics.jsonl"
    before = changed(metrics)
    while changed(metrics) == before and process.poll() is None:
        time.sleep(0.001)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is None


def changed(file: Path) -> int:
    """When, in ns; 0 if there is none."""
    return file.stat().st_mtime_ns if file.exists() else 0


def kill(process: subprocess.Popen[str]) -> None:
    """With all that it started: torchrun gives every rank a session of its own, so no group."""
    launcher = psutil.Process(process.pid)
    launcher.suspend()  # or it would start others meanwhile
    for each in [*launcher.children(recursive=True), launcher]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()  # until the last of them has closed its end


def started(folder: Path) -> bool:
    """Whether there is something to resume."""
    return any((folder / "checkpoints").glob("step_*.pt"))


def run_with_kills(
    arguments: list[str], folder: Path, kills: int, dice: random.Random
) -> tuple[int, int]:
    """Kill at most ``kills`` times, then let it end: (kills, of them inside a write)."""
    done = inside = 0
    while True:
        resume = ["--run.resume"] if started(folder) else []
        if not resume and folder.exists():  # killed before its first checkpoint
            shutil.rmtree(folder)
        before = time.time_ns()
        process = start([*arguments, *resume])
        if done < kills and comes_to(process, folder, dice.uniform(0, 3)):
            kill(process)
            done += 1
            inside += any(map(before.__lt__, map(changed, folder.glob("checkpoints/*.draft"))))
            continue
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"a resumed run failed:\n{said[-3000:]}")
        return done, inside


def trace(folder: Path) -> list[Any]:
    """Step, loss and learning rate, without the timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["lr"]) for line in lines]


def last_checkpoint(folder: Path) -> dict[str, Any]:
    """All that is in it."""
    return torch.load(max((folder / "checkpoints").glob("step_*.pt")), weights_only=True)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two checkpoints differ by a bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for key in {**one, **other}
            for found in differences(one.get(key), other.get(key), f"{path}.{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for n, (a, b) in pairs for found in differences(a, b, f"{path}[{n}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    return [] if one == other else [path]


def main() -> None:
    """Campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)  # noqa: S311 - when to kill is no secret
    with tempfile.TemporaryDirectory() as place:
        teacher = small_teacher(Path(place) / "teacher")
        whole = Path(place) / "whole"
        run_with_kills(command(whole, teacher, options), whole, 0, dice)
        kills = inside = runs = 0
        while kills < options.kills:
            folder = Path(place) / f"run{runs}"
            arguments = command(folder, teacher, options)
            killed, written = run_with_kills(
                arguments, folder, min(10, options.kills - kills), dice
            )
            differ = differences(last_checkpoint(whole), last_checkpoint(folder))
            if trace(folder) != trace(whole) or differ:
                raise SystemExit(f"run {runs} differs after {killed} kills: {differ[:5]}")
            runs, kills, inside = runs + 1, kills + killed, inside + written
            print(f"run {runs}: {killed} kills, {written} inside a write; bit-equal", flush=True)
    print(
        f"{kills} kills of {options.processes} processes, {inside} inside a write, {runs} runs: "
        "nothing lost"
    )


if __name__ == "__main__":
    main()
