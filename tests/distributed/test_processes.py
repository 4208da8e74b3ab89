"""Distributed equals single: the real recipe in spawned gloo processes.

BatchNorm is held in eval mode, since on CPUs it looks at each process's part of the batch
(SyncBatchNorm exists on GPUs only).
"""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from tests.recipes.conftest import tiny, tiny_teacher, trace  # noqa: F401


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _one_process(
    rank: int, world_size: int, port: int, arguments: list[str], as_launched: bool
) -> None:
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import accelerate

    import distill
    import launch

    if not as_launched:  # an Accelerator that is not told of the CPU believes to be alone
        launch.Accelerator = lambda **_: accelerate.Accelerator()
    train = nn.modules.batchnorm._BatchNorm.train
    nn.modules.batchnorm._BatchNorm.train = lambda self, mode=True: train(self, False)
    distill.main(arguments)


def run(
    world_size: int, arguments: list[str], folder: Path, *more: str, as_launched: bool = True
) -> Path:
    arguments = [*arguments, f"--run.output-dir={folder}", "--run.no-store", *more]
    mp.spawn(_one_process, (world_size, free_port(), arguments, as_launched), nprocs=world_size)
    return folder


def last_state(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "step_00000006.pt", weights_only=True)


@pytest.mark.timeout(600)
def test_two_processes_equal_one(tiny, tmp_path):  # noqa: F811
    one = run(1, tiny, tmp_path / "one")
    two = run(2, tiny, tmp_path / "two")
    accumulated = run(2, tiny, tmp_path / "accumulated", "--optim.accumulation-steps=2")
    for other in (two, accumulated):
        for a, b in zip(trace(one), trace(other), strict=True):
            assert a["lr"] == b["lr"]
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        single, shared = last_state(one), last_state(other)
        torch.testing.assert_close(
            single["queue"]["keys"], shared["queue"]["keys"], rtol=1e-5, atol=1e-6
        )
        assert single["queue"]["cursor"] == shared["queue"]["cursor"] == 6 * 8 % 32
        for key, value in single["distiller"].items():
            torch.testing.assert_close(
                value, shared["distiller"][key], rtol=1e-3, atol=1e-4, msg=key
            )
        for index, slot in single["optimizer"][
            "state"
        ].items():  # the running mean of the gradients
            reference = slot["exp_avg"]
            torch.testing.assert_close(
                reference,
                shared["optimizer"]["state"][index]["exp_avg"],
                rtol=1e-2,
                atol=1e-3 * reference.abs().max(),
            )


def test_two_processes_standardise_by_the_same_moments(tiny, tmp_path):  # noqa: F811
    arguments = [*tiny, "--method.loss=cosine_smooth_l1"]
    one, two = (run(n, arguments, tmp_path / str(n)) for n in (1, 2))
    for a, b in zip(trace(one), trace(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    single, shared = (last_state(folder)["moments"]["merged"] for folder in (one, two))
    torch.testing.assert_close(single, shared, rtol=1e-4, atol=1e-5)


def test_a_launch_of_which_each_process_believes_it_is_alone_is_refused(tiny, tmp_path):  # noqa: F811
    with pytest.raises(
        mp.ProcessRaisedException, match="2 processes were launched but each believes"
    ):
        run(2, tiny, tmp_path / "run", as_launched=False)
    assert not (tmp_path / "run").exists()


def test_a_run_of_two_processes_resumes(tiny, tmp_path):  # noqa: F811
    folder = run(2, tiny, tmp_path / "run")
    whole = trace(folder)
    (folder / "checkpoints" / "step_00000006.pt").unlink()
    run(2, tiny, folder, "--run.resume")
    assert trace(folder) == whole
