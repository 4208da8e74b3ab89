import os
import signal
from types import SimpleNamespace

import pytest
import torch

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import training_batches
from pcd_hub.data.shared_memory import fit_workers
from pcd_hub.data.sources.open import Scenes
from pcd_hub.data.views import byol_views
from pcd_hub.errors import DataError

MB = 10**6


@pytest.fixture
def free(monkeypatch):
    """Set the free shared memory; None if there is no such folder."""

    def set_free(size: int | None) -> None:
        def usage(_):
            if size is None:
                raise FileNotFoundError
            return SimpleNamespace(free=size)

        monkeypatch.setattr("shutil.disk_usage", usage)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    return set_free


@pytest.mark.parametrize(
    ("size", "workers", "fitted"),
    [
        (None, 15, (15, 4)),  # no such folder
        (64_000 * MB, 15, (15, 4)),
        (22_000 * MB, 15, (15, 4)),  # 63 x 308 MB are 19.4 GB
        (20_000 * MB, 15, (15, 3)),
        (6_500 * MB, 15, (15, 1)),
        (6_000 * MB, 15, (14, 1)),
        (1_400 * MB, 15, (1, 1)),
        (1_300 * MB, 15, (0, 4)),
        (64 * MB, 15, (0, 4)),
        (64 * MB, 1, (0, 4)),
        (64 * MB, 0, (0, 4)),
    ],
)
def test_batches_of_308_mb_fit_the_free_memory(free, caplog, size, workers, fitted):
    free(size)
    batch = 1024 * 2 * 3 * 224 * 224
    assert fit_workers(workers, prefetch=4, batch_bytes=batch) == fitted
    assert ("docker run --shm-size" in caplog.text) == (fitted != (workers, 4))


def test_a_reduction_is_logged_with_numbers(free, caplog):
    free(64 * MB)
    assert fit_workers(2, prefetch=4, batch_bytes=10 * MB) == (2, 1)
    (message,) = caplog.messages
    assert message.startswith(
        "/dev/shm has 57.6 MB free, but 2 workers with 4 batches of 10.0 MB each need 110.0 MB: "
        "using 2 workers with 1 batches."
    )


def test_empty_batches_need_no_memory(free):
    free(64 * MB)
    assert fit_workers(2, prefetch=4, batch_bytes=0) == (2, 4)


def test_processes_on_one_machine_share_the_memory(free, monkeypatch):
    free(64 * MB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert fit_workers(2, prefetch=4, batch_bytes=5 * MB) == (2, 1)


def batches(num_workers: int, total_steps: int):
    plan = BatchPlan(global_batch_size=4, total_steps=total_steps)
    views = byol_views(32, seed=0)
    return training_batches(Scenes(8, seed=0), views, plan, num_workers=num_workers)


def test_without_free_memory_the_training_process_reads_the_same_batches(free, caplog):
    expected = list(batches(0, 2))
    free(64_000)
    for one, other in zip(expected, batches(1, 2), strict=True):
        assert torch.equal(one.views, other.views)
    assert "using no workers" in caplog.text


def test_running_out_of_shared_memory_is_a_one_line_error(monkeypatch):
    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>\nmore")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(
        DataError, match=r"out of shared memory in /dev/shm \(unable to .*--shm-size"
    ) as e:
        list(batches(1, 2))
    assert "\n" not in str(e.value)


def test_a_worker_killed_by_a_bus_error_is_an_error(monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGBUS)

    monkeypatch.setattr(Scenes, "read", die)
    with pytest.raises(RuntimeError, match="^DataLoader worker .* (Bus error|exited unexpectedly)"):
        list(batches(1, 2))
