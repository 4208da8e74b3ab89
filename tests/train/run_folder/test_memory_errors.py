"""Errors of memory are one line with the remedy."""

import pytest
import torch

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.run_folder.memory_errors import explained


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation"
        ),
        MemoryError("Unable to allocate 3.7 TiB for an array"),
        MemoryError(),
    ],
)
def test_a_batch_that_is_too_large_names_the_options(error, capsys):
    def main(_):
        raise error

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert "lower --optim.global-batch-size" in said
    assert said.count("\n") == 1


def test_an_allocation_that_the_cpu_refuses_is_explained():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert "out of memory" in (explained(refused.value) or "")


def test_a_dead_worker_names_the_shared_memory():
    said = explained(RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. "))
    assert said
    assert "--shm-size 32g" in said


def test_another_error_is_not_explained():
    assert explained(RuntimeError("shape '[2]' is invalid for input of size 3")) is None
