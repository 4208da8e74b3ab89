"""Batch statistics over all processes: on GPUs; on CPUs logged, or an error if required."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pcd_hub.errors import ConfigError
from pcd_hub.train.networks import with_sync_batch_norm


def processes(count: int, device: str) -> Any:
    return SimpleNamespace(num_processes=count, device=torch.device(device))


@pytest.mark.parametrize("option", ["--detector.norm", "--fcn.norm"])
def test_batch_statistics_over_processes_cannot_be_required_on_cpus(option):
    module = nn.BatchNorm2d(3)
    required_by = f"{option} sync"
    one = with_sync_batch_norm(module, processes(1, "cpu"), required_by=required_by)
    assert one is module
    with pytest.raises(ConfigError, match=f"{required_by}: SyncBatchNorm needs GPUs, found 2 CPU"):
        with_sync_batch_norm(module, processes(2, "cpu"), required_by=required_by)
    synced = with_sync_batch_norm(module, processes(2, "cuda"), required_by=required_by)
    assert isinstance(synced, nn.SyncBatchNorm)


def test_batch_statistics_over_all_processes_keep_timms_activations():
    model = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        synced = with_sync_batch_norm(model, processes(2, "cuda"))
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in synced.modules())
        torch.testing.assert_close(synced.eval()(images), expected)


def test_on_cpus_local_batch_statistics_are_logged(caplog):
    model = timm.create_model("test_resnet", num_classes=0)
    with caplog.at_level("INFO"):
        assert with_sync_batch_norm(model, processes(2, "cpu")) is model
    assert "batch statistics are local to each process" in caplog.text
