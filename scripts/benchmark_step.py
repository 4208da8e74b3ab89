"""Measure the recipe's training step or a plain reference, in the current process.

``scripts/benchmark.py step`` starts one process of this script per measurement. The plain step is
a straightforward implementation of the paper: float32, torchvision's transforms on Pillow images,
``cross_entropy`` on the logits of all negatives, the default memory allocator, nothing compiled or
folded. Both use the same teacher, files, batch size and queue.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from measuring import DEVICE, peak_bytes, stage_seconds, synchronize
from pcd_hub.data.loader import Batch
from pcd_hub.data.workers import default_workers
from pcd_hub.method.heads import STUDENT_HEADS, student_head
from pcd_hub.method.optim import LARS, decay_groups
from pcd_hub.method.queue import KeyQueue
from pcd_hub.models.grid import PixelGrid
from pcd_hub.models.teacher_loading import load_matched_teacher
from pcd_hub.train import distill
from pcd_hub.train.batches import open_batches
from pcd_hub.train.configs.distill import (
    DistillConfig,
    DistillDataConfig,
    DistillOptimConfig,
    DistillRunConfig,
    SpeedConfig,
    StudentConfig,
    TeacherConfig,
)
from pcd_hub.train.configs.method import PixelMethodConfig
from pcd_hub.train.launch import start_accelerator
from pcd_hub.train.networks import build_backbone
from pcd_hub.train.teacher.cache.targets import Repeated

STAGES = ("data wait", "teacher", "student", "loss", "backward", "optimizer")
SWITCHES = ("fold", "compile", "channels_last", "foreach", "keep_memory", "flash", "bf16")
EXTRAS = ("resident", "cached")
"""Images decoded in the device's memory; the teacher's feature maps in memory, as from a full cache
but without its reading."""
_WARM_UP = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCase:
    """Settings of a step to measure."""

    teacher: str
    """Folder with ``teacher.json``."""
    images: str
    """Text file with a list of images."""
    student: str
    image_size: int
    batch_size: int
    """Number of images, each in two views."""
    queue_length: int
    temperature: float = 0.2
    compile: bool = DEVICE.type == "cuda"
    off: tuple[str, ...] = ()
    """Optimisations of the recipe to switch off, from ``SWITCHES``."""
    also: tuple[str, ...] = ()
    """Options of the recipe that are off by default, from ``EXTRAS``."""


Step = Callable[[Any], Tensor]


def recipe_step(case: StepCase, steps: int, folder: Path) -> tuple[Step, Iterator[Any]]:
    """Build the training step of ``recipes/distill.py`` from the recipe's code."""
    if "flash" in case.off:
        sys.modules["pcd_hub.method.loss"]._has_flash_kernel = lambda *_: False  # pyright: ignore[reportAttributeAccessIssue]
    config = DistillConfig(
        teacher=TeacherConfig(
            source=f"local-dir:{case.teacher}", fold_batch_norms="fold" not in case.off
        ),
        student=StudentConfig(arch=case.student),
        data=DistillDataConfig(
            source=(case.images,),
            image_size=case.image_size,
            resident="on" if "resident" in case.also else "off",
        ),
        method=PixelMethodConfig(temperature=case.temperature, queue_length=1),
        optim=DistillOptimConfig(global_batch_size=case.batch_size, epochs=1),
        speed=SpeedConfig(
            precision="fp32" if "bf16" in case.off else "auto",
            compile=case.compile and "compile" not in case.off,
            channels_last="channels_last" not in case.off,
            foreach="foreach" not in case.off,
            keep_memory="keep_memory" not in case.off,
        ),
        run=DistillRunConfig(max_steps=steps, output_dir=folder / "run", store=False),
    )
    accelerator = start_accelerator(speed=config.speed, static_graph=True)
    (prepared,) = distill.prepare(accelerator, config, "benchmark")
    assert prepared.queue is not None, "the loss has negatives"
    # The recipe's is at most half as long as there are images, of which few are enough here.
    prepared.queue = KeyQueue(case.queue_length, prepared.queue.keys.shape[1])
    prepared.queue.to(accelerator.device)
    if "cached" in case.also:
        prepared.targets = Repeated()
    prepared.distiller.train()
    wrapped, optimizer = distill.wrap(prepared)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    batches = open_batches(
        prepared.images, prepared.config.data, accelerator.device, prepared.plan, {}
    )

    def take_step(batch: Batch) -> Tensor:
        return distill.training_step(prepared, wrapped, optimizer, [batch])[0]

    return take_step, batches


class _TwoViewImages(Dataset[tuple[Tensor, Tensor]]):
    """Two views of each image, as in MoCo's and PCD's released code."""

    def __init__(self, list_file: Path, size: int) -> None:
        self._paths = list_file.read_text().splitlines()
        self._views = [plain_view(size, blur=1.0, solarize=0.0)]
        self._views += [plain_view(size, blur=0.1, solarize=0.2)]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self._paths[index]) as image:
            rgb = image.convert("RGB")
        first, second = (view(rgb) for view in self._views)
        return first, second


def plain_view(size: int, *, blur: float, solarize: float) -> v2.Compose:
    """Build BYOL's augmentation from torchvision's transforms."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, [0.1, 2.0])], p=blur),
            v2.RandomSolarize(128, p=solarize),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def plain_network(student: PixelGrid, num_channels: int) -> nn.Sequential:
    """Build the student with MoCo v3's projection and prediction heads on every pixel."""
    layout = dataclasses.replace(
        STUDENT_HEADS["mocov3"], mlps=((4096, num_channels), (4096, num_channels))
    )
    return nn.Sequential(student, student_head(student.num_channels, layout))


def plain_step(case: StepCase, steps: int, folder: Path) -> tuple[Step, Iterator[Any]]:
    """Build the plain reference step."""
    del folder
    device = DEVICE
    student = build_backbone(case.student, image_size=case.image_size)
    source = f"local-dir:{case.teacher}"
    teacher = load_matched_teacher(source, student, image_size=case.image_size).to(device)
    normalise = v2.Normalize(teacher.facts.mean, teacher.facts.std)
    network = plain_network(student, teacher.num_channels).to(device)
    optimizer = LARS(decay_groups(network, weight_decay=1e-5), lr=0.1, foreach=False)
    queue = KeyQueue(case.queue_length, teacher.num_channels).to(device)
    loader = DataLoader(
        _TwoViewImages(Path(case.images), case.image_size),
        batch_size=case.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=default_workers(device),
        pin_memory=device.type == "cuda",
    )

    def take_step(views: tuple[Tensor, Tensor]) -> Tensor:
        images = torch.cat([view.to(device, non_blocking=True) for view in views])
        with torch.profiler.record_function("teacher"):
            target = teacher(images)
        with torch.profiler.record_function("student"):
            feature_map = network(normalise(images))
        with torch.profiler.record_function("loss"):
            s, t = (
                F.normalize(m.flatten(2).mT.flatten(0, 1), dim=1) for m in (feature_map, target)
            )
            logits = torch.cat([(s * t).sum(1, keepdim=True), s @ queue.keys.T], dim=1)
            labels = torch.zeros(len(logits), dtype=torch.int64, device=device)
            loss = F.cross_entropy(logits / case.temperature, labels)
        with torch.profiler.record_function("backward"):
            loss.backward()
        with torch.profiler.record_function("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        queue.push(target[: len(views[0])].mean((2, 3)))
        return loss.detach()

    return take_step, itertools.islice(
        itertools.chain.from_iterable(itertools.repeat(loader)), steps
    )


def measure(case: StepCase, kind: str, steps: int, timeline: Path | None) -> dict[str, Any]:
    """Measure the time of each step, its split over stages, and the peak memory."""
    num_profiled = 3
    with tempfile.TemporaryDirectory() as folder:
        build = recipe_step if kind == "recipe" else plain_step
        take_step, batches = build(case, _WARM_UP + steps + num_profiled, Path(folder))
        seconds, loss = [], torch.zeros(())
        for batch in itertools.islice(batches, _WARM_UP):
            loss = take_step(batch)
        for _ in range(steps):
            synchronize()
            before = time.perf_counter()
            loss = take_step(next(batches))
            synchronize()
            seconds.append(time.perf_counter() - before)
        return {
            "seconds": seconds,
            "split": _split(take_step, batches, num_profiled, timeline),
            "peak_bytes": peak_bytes(),
            "loss": float(loss),
        }


def _split(
    take_step: Step, batches: Iterator[Any], steps: int, timeline: Path | None
) -> dict[str, float]:
    """Measure the seconds per step in each stage, waiting for the device between the stages."""
    with contextlib.ExitStack() as stack:
        profile = None if timeline is None else stack.enter_context(torch.profiler.profile())
        seconds = stack.enter_context(stage_seconds())
        for _ in range(steps):
            with torch.profiler.record_function("data wait"):
                batch = next(batches)
            take_step(batch)
    if profile is not None:
        profile.export_chrome_trace(str(timeline))
    return {stage: seconds.get(stage, 0.0) / steps for stage in STAGES}


def main() -> None:
    """Measure one case and print the result as the last line, in JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["recipe", "plain"])
    parser.add_argument("case", type=json.loads, help="fields of StepCase in JSON")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--timeline", type=Path)
    arguments = parser.parse_args()
    case = StepCase(**arguments.case)
    print(json.dumps(measure(case, arguments.kind, arguments.steps, arguments.timeline)))


if __name__ == "__main__":
    main()
