"""What detect.py and finetune_seg.py share; their own tests run it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from finetuning import shard, with_sync_batch_norm
from pcd_hub.errors import ConfigError


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_together_the_processes_have_each_picture_once(num_processes):
    parts = [shard(7, rank, num_processes) for rank in range(num_processes)]
    assert sorted(index for part in parts for index in part) == list(range(7))


@pytest.mark.parametrize("option", ["--detector.norm", "--fcn.norm"])
def test_batch_statistics_over_processes_are_refused_on_cpus(option):
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    one = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    module = nn.BatchNorm2d(3)
    assert with_sync_batch_norm(module, "sync", option, one) is module
    assert with_sync_batch_norm(module, "batch", option, two) is module
    with pytest.raises(ConfigError, match=f"{option} sync: on CPUs 2 processes cannot share"):
        with_sync_batch_norm(module, "sync", option, two)
    several_gpus = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
    synced = with_sync_batch_norm(module, "sync", option, several_gpus)
    assert isinstance(synced, nn.SyncBatchNorm)
