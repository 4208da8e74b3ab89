"""Distributed equals single: the real recipe in spawned gloo processes.

BatchNorm is kept in eval mode, because on CPUs its statistics are local to each process
(SyncBatchNorm exists on GPUs only). 20 images make two batches of 8 an epoch, and 4 are left over.
"""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from pcd_hub.errors import ConfigError
from pcd_hub.train import contrast as pretrain
from pcd_hub.train import distill, launch
from pcd_hub.train.batches import shard
from pcd_hub.train.monitors.features import FeatureMonitor
from tests.processes import free_ports, start_processes
from tests.stress import kill_campaign
from tests.train import test_contrast as test_pretrain
from tests.train.conftest import (
    leave_out_pictures,
    tiny,  # noqa: F401
    tiny_teacher,  # noqa: F401
    trace,
    watch_the_end,
)

ACCUMULATED, MOMENTS = "--optim.accumulation-steps=2", "--method.loss=cosine_smooth_l1"


def hold_batch_norm(patch: pytest.MonkeyPatch) -> None:
    always_off = property(lambda _: False, lambda _, mode: None)
    patch.setattr(nn.modules.batchnorm._BatchNorm, "training", always_off, raising=False)


class Runs:
    """Runs in the folders of ``root``: complete ones, or resumed from the middle of another."""

    def __init__(self, root: Path, arguments: list[str]) -> None:
        self.root = root
        self._arguments = [*arguments, "--data.source=scenes:20", "--run.no-store"]

    def one(self, name: str, *options: str, half_of: str = "") -> None:
        folder = self.root / name
        if half_of and os.environ.get("RANK", "0") == "0":
            shutil.copytree(self.root / half_of, folder)
            (folder / "checkpoints" / "step_00000006.pt").unlink()
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"step": 6, "lo')  # as a kill may leave it
        resume = ["--run.resume"] if half_of else []
        distill.main([*self._arguments, f"--run.output-dir={folder}", *options, *resume])

    def contrast(self, processes: str) -> None:
        """Both ways to pre-train; the loss of each process is about the images of all."""
        arguments = [*test_pretrain.TINY, "--run.max-steps=2"]
        for loss in ("mocov3", "simclr"):
            folder = self.root / f"{processes} by {loss}"
            pretrain.main([*arguments, f"--method.loss={loss}", f"--run.output-dir={folder}"])

    def of_two(self) -> None:
        self.contrast("two")
        self.one("two")
        self.one("two accumulated", ACCUMULATED)
        self.one("two by moments", MOMENTS)
        self.one("two, resumed by two", half_of="two")
        self.one("one, resumed by two", half_of="one")

    def of_four(self) -> None:
        self.one("four")
        self.one("one, resumed by four", half_of="one")


def _one_process(rank: int, world_size: int, ports: list[int], runs: Runs) -> None:
    hold_batch_norm(pytest.MonkeyPatch())
    leave_out_pictures(pytest.MonkeyPatch())
    start = distill.start_accelerator

    def start_anew(**options):
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["MASTER_PORT"] = str(ports.pop())
        return start(**options)

    distill.start_accelerator = pretrain.start_accelerator = start_anew
    watch_the_end((distill, "save_weight"), (pretrain, "save_pretrained"))
    if rank:
        FeatureMonitor.measure = None  # what costs time and is only logged: the main process alone
    runs.of_two() if world_size == 2 else runs.of_four()


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> Runs:  # noqa: F811
    """Folders of runs by 1, 2 and 4 processes; one spawn each, which takes longest."""
    made = Runs(tmp_path_factory.mktemp("runs"), tiny)
    with pytest.MonkeyPatch.context() as patch:
        hold_batch_norm(patch)
        leave_out_pictures(patch)
        made.one("one")
        made.one("one by moments", MOMENTS)
        made.contrast("one")
    for world_size in (2, 4):
        start_processes(_one_process, (world_size, free_ports(7), made), count=world_size)
    return made


def last_state(folder: Path) -> dict:
    return torch.load(max((folder / "checkpoints").glob("*.pt")), weights_only=True)


def check_equal_but_for_rounding(one: Path, other: Path) -> None:
    for a, b in zip(trace(one), trace(other), strict=True):
        assert a["lr"] == b["lr"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    single, shared = last_state(one), last_state(other)
    for name in {"distiller", "queue", "moments", "contrast", "momentum_encoder"} & single.keys():
        for key, value in single[name].items():
            torch.testing.assert_close(value, shared[name][key], rtol=1e-4, atol=2e-5, msg=key)
    for index, slot in single["optimizer"]["state"].items():  # the running mean of the gradients
        mean, scale = slot["exp_avg"], slot["exp_avg"].abs().max()
        again = shared["optimizer"]["state"][index]["exp_avg"]
        torch.testing.assert_close(mean, again, rtol=0, atol=1e-4 * float(scale))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("other", ["two", "two accumulated", "four"])
def test_more_processes_equal_one(runs, other):
    check_equal_but_for_rounding(runs.root / "one", runs.root / other)
    queue = last_state(runs.root / other)["queue"]
    assert len(queue["keys"]) == 10, "half of the images"
    assert queue["cursor"] == 6 * 8 % 10


@pytest.mark.timeout(600)
def test_two_processes_standardise_by_the_same_moments(runs):
    check_equal_but_for_rounding(runs.root / "one by moments", runs.root / "two by moments")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("loss", ["mocov3", "simclr"])
def test_two_processes_contrast_with_the_images_of_both(runs, loss):
    check_equal_but_for_rounding(runs.root / f"one by {loss}", runs.root / f"two by {loss}")
    assert (runs.root / f"two by {loss}" / "teacher" / "teacher.safetensors").is_file()


@pytest.mark.timeout(600)
def test_a_run_of_two_processes_resumes_to_the_bit(runs):
    whole, again = runs.root / "two", runs.root / "two, resumed by two"
    assert trace(again) == trace(whole)
    assert kill_campaign.differences(last_state(whole), last_state(again)) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes", ["two", "four"])
def test_more_processes_resume_from_one(runs, processes):
    check_equal_but_for_rounding(runs.root / "one", runs.root / f"one, resumed by {processes}")


@pytest.mark.timeout(600)
def test_one_process_resumes_from_two_and_logs_the_difference(runs, monkeypatch, caplog):
    hold_batch_norm(monkeypatch)
    with caplog.at_level("INFO", logger="pcd_hub"):
        runs.one("two, resumed by one", half_of="two")
    message = (
        "resumed by 1 processes, stopped with 2: images and their order are the same, sums round"
    )
    assert message in caplog.text
    check_equal_but_for_rounding(runs.root / "one", runs.root / "two, resumed by one")


@pytest.mark.parametrize(
    "launched",
    [
        {"WORLD_SIZE": "2"},
        {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},  # accelerate launch --cpu
    ],
)
def test_a_launch_whose_processes_see_only_themselves_is_rejected(
    tiny,  # noqa: F811
    tmp_path,
    monkeypatch,
    launched,
):
    # Without cpu=True an Accelerator sees only its own process.
    monkeypatch.setattr(launch, "Accelerator", lambda **_: accelerate.Accelerator())
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"(2|several) processes were launched, but each sees"):
        distill.main([*tiny, f"--run.output-dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_a_launch_of_one_gpu_on_a_cluster_is_no_launch_of_several(monkeypatch):
    """Accelerate sets the CPU flag in every launch, and clusters set the main machine's address."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("MASTER_ADDR", "node17")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone: Any = SimpleNamespace(num_processes=1)
    launch._check_that_all_were_launched(alone)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 17])
def test_an_evaluation_sees_every_picture_once_however_many_processes_share_them(count):
    for processes in (1, 2, 4):
        seen = [index for rank in range(processes) for index in shard(count, rank, processes)]
        assert sorted(seen) == list(range(count))
