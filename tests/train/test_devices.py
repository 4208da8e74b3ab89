"""What a GPU could change, as tests that also run on a CPU.

``scripts/gpu_check.py`` runs the forms with the marker ``gpu``.
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import training_batches
from pcd_hub.data.sources.open import open_sources
from pcd_hub.data.views import byol_views
from pcd_hub.train import distill
from pcd_hub.train.distillation import device as move
from tests.train.conftest import trace

on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)
RESUME_TOLERANCE = {"cpu": 0.0, "cuda": 1e-2}
"""Relative difference of a loss after a resume. On a GPU the fastest kernels are chosen anew, and
some of them add in a changing order."""


@contextlib.contextmanager
def fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def losses(arguments: list[str], folder: Path, *options: str) -> list[float]:
    with fresh_accelerator():
        distill.main([*arguments, "--run.no-store", f"--run.output-dir={folder}", *options])
    return [line["loss"] for line in trace(folder)]


def largest_difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


@on_each_device
def test_a_resumed_run_repeats_the_uninterrupted_one(tiny, tmp_path, device, record_property):
    options = ["--speed.precision=auto"] if device == "cuda" else []
    whole = losses(tiny, tmp_path / "run", *options)
    (tmp_path / "run" / "checkpoints" / "step_00000006.pt").unlink()
    again = losses(tiny, tmp_path / "run", *options, "--run.resume")
    difference = largest_difference(again, whole)
    record_property("bit-equal", str(again == whole))
    record_property("largest relative difference", f"{difference:.1e}")
    assert len(whole) == 6
    assert again[:3] == whole[:3]
    assert difference <= RESUME_TOLERANCE[device]


@on_each_device
def test_a_launch_of_one_process_gives_what_no_launch_gives(
    tiny, tmp_path, monkeypatch, device, record_property
):
    """DistributedDataParallel, and on a GPU SyncBatchNorm, around one process change nothing."""
    alone = losses(tiny, tmp_path / "alone")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launched = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    wrapped: list[nn.Module] = []
    wrap = distill.wrap

    def watched(d):
        found = wrap(d)
        wrapped.append(type(found[0]))
        return found

    monkeypatch.setattr(distill, "wrap", watched)
    if device == "cuda":  # which one process would not need
        monkeypatch.setattr(
            move, "with_sync_batch_norm", lambda one, _: convert_sync_batchnorm(one)
        )
    launched_losses = losses(tiny, tmp_path / "launched")
    assert wrapped == [DistributedDataParallel]
    difference = largest_difference(launched_losses, alone)
    record_property("largest relative difference", f"{difference:.1e}")
    assert difference <= {"cpu": 1e-6, "cuda": 1e-2}[device]


def _images() -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def _network(device: str) -> nn.Module:
    torch.manual_seed(3)
    network = cast("nn.Module", timm.create_model("test_resnet", num_classes=4)).to(device)
    return network.train(device == "cuda")  # a CPU has no SyncBatchNorm


def _gradients(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    network(images).square().mean().backward()
    return {
        name.removeprefix("module."): cast("Any", parameter.grad).cpu()
        for name, parameter in network.named_parameters()
    }


def _one_of_two(rank: int, folder: Path, device: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    network = _network(device)
    if device == "cuda":
        network = convert_sync_batchnorm(network)
    wrapped = DistributedDataParallel(network)
    gradients = _gradients(wrapped, _images()[rank::2].to(device))
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    dist.barrier()
    dist.destroy_process_group()


@on_each_device
def test_two_processes_on_one_device_have_the_gradients_of_one(tmp_path, device, monkeypatch):
    """NCCL needs a GPU for each process, gloo does not: one GPU is enough for SyncBatchNorm."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    mp.spawn(_one_of_two, (tmp_path, device), nprocs=2)
    shared = torch.load(tmp_path / "gradients.pt", weights_only=True)
    alone = _gradients(_network(device), _images().to(device))
    assert shared.keys() == alone.keys()
    scale = max(float(value.abs().max()) for value in alone.values())
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4 * scale, msg=name)


@on_each_device
def test_resident_images_have_the_draws_and_statistics_of_the_loader(device, record_property):
    """Rendered in batches on the device."""
    reading = pytest.importorskip("pcd_hub.data.resident.reading")
    resident = pytest.importorskip("pcd_hub.data.resident.batches")
    source = open_sources(("scenes:24",), rank=0, world_size=1)
    views, plan = byol_views(32, seed=3), BatchPlan(global_batch_size=8, total_steps=9, seed=1)
    ours, from_host = (
        [
            *resident.resident_batches(
                reading.read_images(source, side=1000, num_bands=3, device=place, num_workers=0),
                *(views, plan),
                num_workers=0,
                render_on=torch.device(device),
            )
        ]
        for place in (torch.device(device), torch.device("cpu"))
    )
    for one, other in zip(ours, from_host, strict=True):
        assert torch.equal(one.views, other.views), "the same, from host memory"
    theirs = list(training_batches(source, views, plan, num_workers=0))
    for one, other in zip(ours, theirs, strict=True):
        assert one.views.device.type == device
        assert torch.equal(one.indices.cpu(), other.indices)
        assert torch.equal(one.crops.cpu(), other.crops)
    pixels, expected = (
        torch.cat([batch.views.cpu() for batch in batches]).float() for batches in (ours, theirs)
    )
    difference = (pixels - expected).abs().mean()
    record_property("mean difference in levels of 255", f"{difference:.2f}")
    assert difference < 1.5
    for statistic in (torch.mean, torch.std):
        assert (statistic(pixels, (0, 3, 4)) - statistic(expected, (0, 3, 4))).abs().max() < 1
