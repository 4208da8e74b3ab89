"""Benchmarks of the loss, the data pipeline and the models, which scripts/benchmark.py runs."""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmark_step import plain_view
from measuring import DEVICE, peak_bytes, print_table, seconds, synchronize
from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import DecodeForViews
from pcd_hub.data.resident.batches import resident_batches
from pcd_hub.data.resident.images import ResidentImages
from pcd_hub.data.resident.memory import side_for_views
from pcd_hub.data.resident.reading import read_images
from pcd_hub.data.scenes import render_scene
from pcd_hub.data.sources.files import ImageFiles
from pcd_hub.data.views import TwoViewTransform, byol_views
from pcd_hub.method.loss import bank_log_sum_exp
from pcd_hub.models.entries import STOCK_ARCHITECTURES

LOSS_CASES = [(576, 65_536, 256), (1568, 16_384, 256), (6272, 65_536, 256), (1568, 8192, 8192)]


def save_synthetic_images(folder: Path, count: int) -> Path:
    """Save synthetic scenes as JPEGs of ImageNet's average size."""
    folder.mkdir()
    for number in range(count):
        scene = Image.fromarray(render_scene(0, number, size=128).image)
        scene.resize((500, 375), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
    return folder


def benchmark_loss(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Compare value, gradient, time and memory of the loss with dense cross-entropy."""
    del folder
    results, rows = [], []
    for n, k, c in options.loss_cases:
        dense, ours = (measure_loss_in_process(kind, n, k, c) for kind in ("dense", "ours"))
        results.append({"n": n, "k": k, "c": c, "dense": dense, "ours": ours})
        yield {"cases": results}
        memory = dense["peak_bytes"] / max(1, ours["peak_bytes"])
        rows.append(
            [
                f"{n} x {k} x {c}",
                f"{1000 * dense['seconds']:.0f} ms",
                f"{1000 * ours['seconds']:.0f} ms",
                f"**{dense['seconds'] / ours['seconds']:.1f} x**",
                f"{dense['peak_bytes'] / 2**20:.0f} MiB",
                f"{ours['peak_bytes'] / 2**20:.0f} MiB",
                f"1/{memory:.0f}",
                f"{dense['value_error']:.0e} / {ours['value_error']:.0e}",
                f"{dense['gradient_error']:.0e} / {ours['gradient_error']:.0e}",
            ]
        )
    header = ["N x K x C", "dense", "ours", "speed-up", "memory, dense", "memory, ours", "ratio"]
    print_table([*header, "value error, dense / ours", "gradient error, dense / ours"], rows)


def measure_loss_in_process(kind: str, n: int, k: int, c: int) -> dict[str, float]:
    """Call :func:`measure_loss` in a new process, for its peak memory."""
    call = f"measure_loss({kind!r}, {n}, {k}, {c})"
    code = f"import json, benchmark_parts; print(json.dumps(benchmark_parts.{call}))"
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return json.loads(done.stdout.splitlines()[-1])


def measure_loss(kind: str, n: int, k: int, c: int) -> dict[str, float]:
    """Measure forward and backward pass of one case."""
    query, bank, positive = _loss_inputs(n, k, c)
    autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda")
    loss_function = _dense_loss if kind == "dense" else _our_loss
    losses = torch.zeros(0)

    def forward_and_backward() -> None:
        nonlocal losses
        query.grad = None
        with autocast:
            losses = loss_function(query, bank, positive)
        losses.mean().backward()

    before = peak_bytes()
    times = seconds(forward_and_backward, 3)
    peak = peak_bytes() - before
    # Compare with the dense loss of some rows in float64.
    rows = slice(0, min(n, 256))
    exact_query = query.detach()[rows].double().requires_grad_()
    exact = _dense_loss(exact_query, bank.double(), positive[rows].double())
    exact.sum().backward()
    assert query.grad is not None
    assert exact_query.grad is not None
    error = (query.grad[rows].double() * n - exact_query.grad).norm() / exact_query.grad.norm()
    value_error = (losses[rows].double() - exact).detach().abs().max()
    return {
        "seconds": statistics.median(times),
        "peak_bytes": peak,
        "value_error": float(value_error),
        "gradient_error": float(error),
    }


def _loss_inputs(n: int, k: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, bank, positive = (
        F.normalize(torch.randn(rows, c, generator=generator), dim=1).to(DEVICE)
        for rows in (n, k, n)
    )
    return query.requires_grad_(), bank, positive


def _dense_loss(query: Tensor, bank: Tensor, positive: Tensor) -> Tensor:
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ bank.T], dim=1)
    labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits / 0.2, labels, reduction="none")


def _our_loss(query: Tensor, bank: Tensor, positive: Tensor) -> Tensor:
    positive = (query * positive).sum(1) / 0.2
    return torch.logaddexp(positive, bank_log_sum_exp(query, bank, temperature=0.2)) - positive


def benchmark_data(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Measure images (in two views) per second and core, against torchvision on Pillow images.

    Images in the GPU's memory are measured per second of the GPU.
    """
    count = options.synthetic_images
    source = ImageFiles.from_folder(
        options.images or save_synthetic_images(folder / "jpegs", count)
    )
    torch.set_num_threads(1)
    results, rows = [], []
    for size in options.data_sizes:
        pipelines = {
            "torchvision on Pillow": _core_seconds(_torchvision_pair(source, size)),
            "recipe": _core_seconds(_our_pair(source, size)),
            **_resident_pipelines(source, size),
        }
        times: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(options.repeats):
            for name, seconds_of in pipelines.items():
                times[name].append(seconds_of(min(len(source), 200)))
        medians = {name: statistics.median(values) for name, values in times.items()}
        results.append({"image_size": size, "core_seconds_per_image": medians})
        yield {"images": len(source), "results": results}
        reference = medians["torchvision on Pillow"]
        rows += [
            [f"{size} px", name, f"{1 / value:.0f}", f"{reference / value:.2f} x"]
            for name, value in medians.items()
        ]
    print_table(["views", "pipeline", "images/s per core", "speed-up over torchvision"], rows)


def _core_seconds(read: Callable[[int], object]) -> Callable[[int], float]:
    """Return a function that measures the seconds of a core per image, for a number of images."""

    def seconds_of(count: int) -> float:
        for index in range(5):
            read(index)
        before = time.process_time()
        for index in range(count):
            read(index)
        return (time.process_time() - before) / count

    return seconds_of


def _resident_pipelines(source: ImageFiles, size: int) -> dict[str, Callable[[int], float]]:
    """Return what measures batches of images in host memory, and in that of a GPU."""
    views = byol_views(size, seed=0)
    pipelines: dict[str, Callable[[int], float]] = {}
    for device in {torch.device("cpu"): None, DEVICE: None}:
        images = read_images(
            source,
            side=side_for_views(size, views.first.crop_area),
            num_bands=3,
            device=device,
            num_workers=0,
        )
        if device.type == "cpu":
            pipelines["resident, by the loader"] = _batch_seconds(images, views, None)
        name = f"resident, in batches on {device.type}"
        pipelines[name] = _batch_seconds(images, views, device)
        if device.type == "cpu" != DEVICE.type:
            name = f"resident in host memory, in batches on {DEVICE.type}"
            pipelines[name] = _batch_seconds(images, views, DEVICE)
    return pipelines


def _batch_seconds(
    images: ResidentImages, views: TwoViewTransform, render_on: torch.device | None
) -> Callable[[int], float]:
    """Return a function that measures the seconds per image of batches."""
    on_cpu = render_on is None or render_on.type == "cpu"
    now = time.process_time if on_cpu else time.perf_counter
    batch_size = min(len(images), 32 if on_cpu else 256)

    def seconds_of(count: int) -> float:
        steps = math.ceil(count / batch_size)
        plan = BatchPlan(global_batch_size=batch_size, total_steps=steps + 2)
        workers = 0 if on_cpu else 4
        batches = resident_batches(images, views, plan, num_workers=workers, render_on=render_on)
        for _ in range(2):
            next(batches)
        synchronize()
        before = now()
        for _ in batches:
            pass
        synchronize()
        return (now() - before) / (steps * batch_size)

    return seconds_of


def _torchvision_pair(source: ImageFiles, size: int) -> Callable[[int], object]:
    first, second = (plain_view(size, blur=b, solarize=s) for b, s in ((1.0, 0.0), (0.1, 0.2)))

    def two_views(opened: Image.Image) -> tuple[Tensor, Tensor]:
        image = opened.convert("RGB")
        return first(image), second(image)

    return lambda index: source.read(index, two_views)


def _our_pair(source: ImageFiles, size: int) -> Callable[[int], object]:
    views = byol_views(size, seed=0)
    return lambda index: views.render(*source.read(index, DecodeForViews(views, 0, index)))


def benchmark_models(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Measure parameters, multiply-adds, latency and throughput of every ``pcd`` entry."""
    del folder
    results, rows = [], []
    for arch in (*STOCK_ARCHITECTURES, "resnet18_mhsa"):
        model: Any = timm.create_model(arch, num_classes=0).eval()
        model = model.to(DEVICE, memory_format=torch.channels_last)
        size = options.image_size if not model.pretrained_cfg.get("fixed_input_size") else 224
        one, many = (
            torch.rand(count, 3, size, size, device=DEVICE).contiguous(
                memory_format=torch.channels_last
            )
            for count in (1, options.batch_size)
        )
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                model(one)
            latency = statistics.median(seconds(lambda: model(one), 5))  # noqa: B023
            batch = statistics.median(seconds(lambda: model(many), 3))  # noqa: B023
        result = {
            "arch": arch,
            "image_size": size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "macs": counter.get_total_flops() / 2,
            "latency": latency,
            "images_per_s": options.batch_size / batch,
        }
        results.append(result)
        yield {"results": results}
        rows.append(
            [
                f"`{arch}.pcd`",
                f"{size}",
                f"{result['parameters'] / 1e6:.1f} M",
                f"{result['macs'] / 1e9:.2f}",
                f"{1000 * latency:.1f} ms",
                f"{result['images_per_s']:.0f}",
            ]
        )
    header = ["entry", "px", "parameters", "GMAC", "latency, batch 1", "images/s"]
    print_table([*header[:-1], f"images/s, batch {options.batch_size}"], rows)
