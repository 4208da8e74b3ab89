"""What detect.py and finetune_seg.py share; their own tests run it."""

import inspect
import os
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from configs import DataConfig
from detect_configs import CocoDataConfig
from finetune_seg_configs import FinetuneDataConfig
from finetuning import num_workers, shard, with_sync_batch_norm
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


@pytest.mark.parametrize("config", [DataConfig, CocoDataConfig, FinetuneDataConfig])
def test_the_default_number_of_workers_is_the_documented_one(config, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    on_cpu, most = re.findall(
        r"Default: (\d+) on CPU, else up to (\d+)", inspect.getsource(config)
    )[0]
    for device, expected in (("cpu", on_cpu), ("cuda", most)):
        accelerator = SimpleNamespace(device=torch.device(device))
        assert num_workers(None, accelerator) == int(expected)
    assert num_workers(3, SimpleNamespace(device=torch.device("cpu"))) == 3
