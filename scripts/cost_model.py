"""A model of a training step on GPUs: what it computes, what it sends, how long that takes.

FLOP and kernels are counted on the meta device; how fast they run is assumed (:class:`Cluster`).
Nothing here is measured but the loader's rate.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pcd_hub.method.heads import STUDENT_HEADS, HeadLayout, student_head

IMAGES = 1_281_167
"""Of ImageNet-1k's training set."""
IMAGE_BYTES = 115_000
"""Mean size of its JPEG files: 147.9 GB."""
RESIDENT_BYTES = 256 * 342 * 3
"""Of one image, decoded with a short side of 256 px and a side ratio of 4:3."""
VIEW_EPOCHS = 4
"""Pairs of views of each image whose targets are cached."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is assumed about the machines."""

    flop_per_s: float = 989e12
    """Of an H100's matrix units in bfloat16, by its data sheet."""
    utilisation: float = 0.30
    """Share of it that convolutions reach."""
    transformer_utilisation: float = 0.45
    """Share of it that a transformer reaches."""
    launch_seconds: float = 5e-6
    """To launch one kernel."""
    loader_images_per_s: float = 2050.0
    """Of 16 CPU cores, in two views of 224 px each; one core makes 137, as measured."""
    gpus_per_machine: int = 8
    bandwidth: float = 300e9
    """Bytes per second of a collective between the GPUs of a machine."""
    bandwidth_between: float = 40e9
    """Bytes per second and GPU between machines (400 Gbit/s each)."""
    latency: float = 30e-6
    """Seconds of a small collective in a machine."""
    latency_between: float = 60e-6
    """Seconds of a small collective between machines."""
    price: float = 2.50
    """US dollars per GPU and hour."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one image in two views takes, and what a step of any size takes."""

    teacher_flop: float
    teacher_is_transformer: bool
    student_flop: float
    """Forward and backward, with the head."""
    loss_flop: float
    teacher_kernels: int
    student_kernels: int
    parameters: int
    """Of student and head: what the processes average."""
    batch_norms: int
    """Of student and head: each needs one collective forward and one backward."""
    channels: int
    """Of the teacher's feature map."""
    locations: int
    """Of the feature map of one view."""

    @property
    def record_bytes(self) -> int:
        """Bytes of the cached targets of one pair of views: 8 bits a value, a scale a location."""
        return 2 * self.locations * (self.channels + 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of the parts of a step on each GPU."""

    compute: float
    gradients: float
    """Averaging them, where it is not hidden by the backward pass."""
    batch_norm: float
    queue: float
    loader: float
    """Loading a batch, at the same time as the rest."""
    images: int
    """Of the global batch."""

    @property
    def training(self) -> float:
        """Seconds without waiting for the loader."""
        return self.compute + self.gradients + self.batch_norm + self.queue

    @property
    def seconds(self) -> float:
        """Seconds with the loader, which works at the same time."""
        return max(self.training, self.loader)

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        if self.loader > self.training:
            return "loader"
        parts = {"compute": self.compute, "gradients": self.gradients}
        parts |= {"SyncBatchNorm": self.batch_norm, "queue": self.queue}
        return max(parts, key=lambda part: parts[part])


class _Kernels(TorchDispatchMode):
    """Count the operations that a device would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count(run: Callable[[], object]) -> tuple[float, int]:
    """Count the FLOP (two for a multiply-add) and the kernels of a function."""
    with FlopCounterMode(display=False) as flops, _Kernels() as kernels:
        run()
    return float(flops.get_total_flops()), kernels.count


@functools.cache
def count_work(
    teacher: str,
    *,
    head: str = "mocov3",
    student: str = "resnet18",
    image_size: int = 224,
    queue_length: int = 65_536,
) -> Work:
    """Count the work of a distillation on the meta device.

    Args:
        teacher: A timm architecture; a ResNet-50 has MoCo v3's head with 256 channels.
        head: Layout of the student's head.
        student: A timm architecture.
        image_size: Height and width of a view.
        queue_length: Number of negatives.
    """
    with torch.device("meta"):
        backbone: Any = timm.create_model(teacher, num_classes=0).eval()
        network: Any = timm.create_model(student, num_classes=0)
        images = torch.zeros(2, 3, image_size, image_size)
        has_head = teacher == "resnet50"
        channels = 256 if has_head else backbone.num_features
        layout = STUDENT_HEADS[head]
        mlps = tuple((*hidden, channels) for *hidden, _ in layout.mlps)
        layout = dataclasses.replace(layout, mlps=mlps)
        pixels = student_head(network.num_features, layout)
        teacher_head = _moco_head(backbone.num_features, layout) if has_head else nn.Identity()
        teacher_flop, teacher_kernels = count(
            lambda: teacher_head(backbone.forward_features(images))
        )

        def student_step() -> Tensor:
            return pixels(network.forward_features(images))

        shape = student_step().shape
        student_flop, student_kernels = count(lambda: student_step().sum().backward())
    trained = [*network.modules(), *pixels.modules()]
    return Work(
        teacher_flop=teacher_flop,
        teacher_is_transformer=hasattr(backbone, "blocks"),
        student_flop=student_flop,
        loss_flop=4.0 * shape.numel() * queue_length,
        teacher_kernels=teacher_kernels,
        student_kernels=student_kernels,
        parameters=sum(p.numel() for part in (network, pixels) for p in part.parameters()),
        batch_norms=sum(isinstance(module, nn.BatchNorm2d) for module in trained),
        channels=channels,
        locations=shape[2] * shape[3],
    )


def _moco_head(num_features: int, layout: HeadLayout) -> nn.Module:
    """Build MoCo v3's projection and prediction MLPs as convolutions: the student's have them."""
    return student_head(num_features, layout).eval()


def time_step(
    work: Work, cluster: Cluster, *, num_gpus: int, global_batch: int = 1024, cached: bool = False
) -> Step:
    """Return the parts of a step; ``cached`` leaves the teacher out."""
    images = global_batch / num_gpus
    transformer = cluster.transformer_utilisation
    teacher_rate = transformer if work.teacher_is_transformer else cluster.utilisation
    rates = {"teacher": teacher_rate * cluster.flop_per_s}
    rates["rest"] = cluster.utilisation * cluster.flop_per_s
    teacher = max(
        images * work.teacher_flop / rates["teacher"], work.teacher_kernels * cluster.launch_seconds
    )
    student = max(
        images * work.student_flop / rates["rest"], work.student_kernels * cluster.launch_seconds
    )
    loss = images * work.loss_flop / rates["rest"]
    several = num_gpus > cluster.gpus_per_machine
    bandwidth = cluster.bandwidth_between if several else cluster.bandwidth
    latency = cluster.latency_between if several else cluster.latency
    others = (num_gpus - 1) / num_gpus
    gradients = 2 * others * 4 * work.parameters / bandwidth
    keys = others * 4 * global_batch * work.channels / bandwidth
    alone = num_gpus == 1
    return Step(
        compute=student + loss + (0.0 if cached else teacher),
        gradients=0.0 if alone else max(0.0, gradients - student / 2),
        batch_norm=0.0 if alone else 2 * work.batch_norms * latency,
        queue=0.0 if alone else latency + keys,
        loader=images / cluster.loader_images_per_s,
        images=global_batch,
    )


def hours(step: Step, epochs: int, *, loads: bool, num_images: int = IMAGES) -> float:
    """Return the hours of a run; without ``loads``, images are never waited for."""
    seconds = step.seconds if loads else step.training
    return num_images * epochs / step.images * seconds / 3600


def run_hours(
    work: Work,
    cluster: Cluster,
    epochs: int,
    *,
    num_gpus: int,
    cached: bool,
    loads: bool = True,
    num_images: int = IMAGES,
) -> float:
    """Return the hours of a run; a cache is filled in its first epochs."""
    uncached = time_step(work, cluster, num_gpus=num_gpus)
    filling = min(epochs, VIEW_EPOCHS) if cached else epochs
    rest = time_step(work, cluster, num_gpus=num_gpus, cached=True)
    first = hours(uncached, filling, loads=loads, num_images=num_images)
    return first + hours(rest, epochs - filling, loads=loads, num_images=num_images)
