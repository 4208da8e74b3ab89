"""Two processes derive the same settings and the same length."""

import json
import os
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from pcd_hub.errors import ConfigError
from pcd_hub.train import distill
from pcd_hub.train.own_images import timing
from tests.processes import free_ports, start_processes
from tests.train.conftest import leave_out_pictures, tiny, tiny_teacher  # noqa: F401

SECONDS = 300.0


def _one_process(rank: int, ports: list[int], arguments: list[str], root: Path) -> None:
    leave_out_pictures(pytest.MonkeyPatch())
    timing.SECONDS = 0.0
    start, measure = distill.start_accelerator, distill.seconds_per_step

    def start_anew(**options):
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["MASTER_PORT"] = str(ports.pop())
        return start(**options)

    def measured(d):
        seconds = measure(d)
        with (root / "seconds").open("a") as file:
            file.write(f"{seconds}\n")
        return SECONDS + rank  # the main process decides

    distill.start_accelerator, distill.seconds_per_step = start_anew, measured
    run = distill.run

    def recorded(*args, **options):
        (finished,) = students = run(*args, **options)
        with (root / f"{rank}.jsonl").open("a") as file:
            decided = [[one.option, one.value, one.reason] for one in finished.decisions]
            steps = finished.plan.total_steps
            file.write(json.dumps([decided, steps]) + "\n")
        return students

    distill.run = recorded
    folder = f"--run.output-dir={root / 'run'}"
    distill.main([*arguments, folder, "--hours=1"])
    distill.main(["--resume", str(root / "run"), "--hours=1"])
    with pytest.raises(ConfigError, match=r"--run.hours 0.01: expected at least"):
        distill.main([*arguments, f"--run.output-dir={root / 'short'}", "--hours=0.01"])


def test_two_processes_decide_the_same(tiny, tmp_path):  # noqa: F811
    names = ("--teacher.source", "--student.arch", "--data.source", "--data.num-workers", "--speed")
    arguments = ["own_images", *(a for a in tiny if a.startswith(names)), "--run.no-store"]
    arguments.append("--optim.global-batch-size=8")
    start_processes(_one_process, (free_ports(3), arguments, tmp_path))
    first, longer = map(json.loads, (tmp_path / "0.jsonl").read_text().splitlines())
    assert [first, longer] == [
        json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()
    ]
    assert (first[1], longer[1]) == (11, 22)
    measured = (tmp_path / "seconds").read_text().splitlines()
    assert len(set(measured)) == 3, "each pair agrees on the slowest process"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for option, value, _ in first[0]:
        group, _, name = option.rpartition(".")
        assert config[group][name] == value
    assert not (tmp_path / "short").exists()
