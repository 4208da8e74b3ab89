"""What detect.py and finetune_seg.py share; their own tests run it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from finetuning import parameter_groups, shard, with_sync_batch_norm
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


def test_all_but_norms_decay():
    network = nn.Sequential()
    for name, layer in {
        "conv": nn.Conv2d(3, 4, 1),
        "batch": nn.BatchNorm2d(4),
        "group": nn.GroupNorm(2, 4),
        "layer": nn.LayerNorm(4),
        "linear": nn.Linear(4, 2),
        "frozen": nn.Linear(2, 2).requires_grad_(False),
    }.items():
        network.add_module(name, layer)
    names = {parameter: name for name, parameter in network.named_parameters()}
    found = {
        group["weight_decay"]: [names[parameter] for parameter in group["params"]]
        for group in parameter_groups(network, weight_decay=0.3)
    }
    assert found == {
        0.3: [f"{layer}.{name}" for layer in ("conv", "linear") for name in ("weight", "bias")],
        0.0: [f"{n}.{name}" for n in ("batch", "group", "layer") for name in ("weight", "bias")],
    }
