import numpy as np
import pytest
import torch

from pcd_hub.data.resident import memory
from pcd_hub.data.resident.memory import (
    estimate_bytes,
    free_bytes,
    kept_size,
    side_for_views,
)


def test_seven_of_eight_crops_are_at_least_as_large_as_their_view():
    side = side_for_views(96, (0.2, 1.0))
    areas = np.random.default_rng(0).uniform(0.2, 1.0, 10_000)
    assert (np.sqrt(areas) * side >= 96).mean() == pytest.approx(7 / 8, abs=0.02)
    assert side_for_views((48, 192), (0.2, 1.0)) == side, "the same area"


def test_smaller_images_keep_their_size():
    assert kept_size((400, 300), 150) == (200, 150)
    assert kept_size((100, 3000), 150) == (100, 3000)


def test_the_estimate_is_the_memory(pictures, resident):
    source = pictures(40)
    images = resident(source, side=60)
    exact = 3 * int(images.table.sizes.prod(1).sum())
    assert estimate_bytes(source, 60, 3) == pytest.approx(exact, rel=0.001)
    assert estimate_bytes(pictures(40, broken=(0, 1)), 60, 3) == pytest.approx(exact, rel=0.1)
    assert estimate_bytes(pictures(2, broken=(0, 1)), 60, 3) == 0


def test_only_a_sample_is_read(pictures):
    source = pictures(10)
    source.images *= 100
    estimate_bytes(source, 60, 3)
    assert len(set(source.reads)) == memory.SAMPLE


def test_processes_of_a_machine_share_its_memory(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    alone = free_bytes(cpu)
    if alone is None:
        pytest.skip("no /proc/meminfo")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(cpu) == pytest.approx(alone / 4, rel=0.2)
