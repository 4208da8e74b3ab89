"""Named configurations of the recipes.

``recipes/distill.py NAME --group.field VALUE`` takes one and changes it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.fields import (
    Area,
    Bounds,
    Channels,
    Count,
    ImageSide,
    NotNegative,
    Positive,
    Seed,
    Share,
    Workers,
)

ProbeScenes = Annotated[int, Bounds(int, 0, 100_000)]


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Who is copied."""

    source: str = "quickstart"
    """Where it comes from, as pcd_hub/models/teachers.py lists.

    quickstart, timm:NAME, hf-hub:ORG/NAME[@REV], local-dir:DIR, mocov3_r50:FILE,
    mocov3:ARCH:FILE, resnet:ARCH:FILE ...
    """
    image_size: ImageSide | Literal["match"] | None = None
    """Height and width in pixels of what the teacher sees, if not the student's; views are resized.

    match: the size at which its grid is the student's, if there is one. Else its pixels are
    resampled, and it is said.
    """
    keep_last_norm: bool = True
    """Of a head like MoCo v3's, which ends in a BatchNorm without weights.

    The released PCD code drops it.
    """
    fold_batch_norms: bool = True
    """Into its convolutions: the same pixels but for rounding, sooner."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone that is trained."""

    arch: str = "resnet18"
    """A timm architecture; resnet18_mhsa is ours, with self-attention after the last stage."""

    def check(self, group: str) -> None:
        """Refuse the name of a weight."""
        architecture, dot, _ = self.arch.partition(".")
        if dot:
            raise ConfigError(
                f"{group}arch {self.arch}: expected an architecture, without the tag of a weight; "
                f"give {architecture}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and their views."""

    source: str = "scenes:"
    """Where they come from, as pcd_hub/data/sources.py lists.

    A folder, a .txt list, scenes:[COUNT[:SEED]], hf-disk:DIR, hf:ORG/NAME[/CONFIG][:SPLIT] or
    hf-stream:ORG/NAME[/CONFIG][:SPLIT].
    """
    shuffle_buffer: Count = 1000
    """hf-stream: images, still encoded, that each loader process holds and shuffles at once.

    1 keeps the stored order. Other sources are shuffled whole, without it.
    """
    image_size: ImageSide = 224
    """Height and width of a view in pixels."""
    min_crop_area: Area = 0.08
    """Least share of the image that a view shows."""
    max_crop_area: Area = 1.0
    """Largest share of the image that a view shows."""
    hue: Annotated[float, Bounds(float, 0, 0.5)] = 0.1
    """Largest shift of hue, as a share of the colour circle."""
    gray_probability: Share = 0.2
    """Of a view without colour."""
    num_workers: Workers | None = None
    """Processes that prepare views, per training process. Default: 1 on CPU, else up to 16."""
    renderer: Literal["opencv", "pillow"] = "opencv"
    """Who draws the colours and the blur of a view; pillow is the slow twin."""

    def check(self, group: str) -> None:
        """Refuse crop areas in the wrong order."""
        if self.min_crop_area > self.max_crop_area:
            raise ConfigError(
                f"{group}min-crop-area {self.min_crop_area} is larger than "
                f"{group}max-crop-area {self.max_crop_area}; give the smaller as the first"
            )


@dataclass(frozen=True, kw_only=True)
class PixelMethodConfig:
    """Pixel-wise distillation; the defaults are PCD's."""

    loss: Literal["pixel_info_nce", "cosine_smooth_l1", "similarity_kl"] = "pixel_info_nce"
    """pixel_info_nce: PCD's, against a queue of negatives.

    cosine_smooth_l1: regression of the standardised teacher pixels. similarity_kl: which pixels of
    an image resemble which.
    """
    targets: Literal["pixels", "pooled"] = "pixels"
    """pooled: one mean vector an image instead, image-level distillation, to compare with."""
    views: Literal["same", "cross"] = "same"
    """Whether teacher and student see the same view.

    cross: the other one, paired by grid index as the released code.
    """
    temperature: Positive | None = None
    """Default: 0.2 for pixel_info_nce, 0.07 for similarity_kl."""
    queue_length: Annotated[int, Bounds(int, 1, 2**24)] = 65_536
    """Negatives; capped at half the data set, else an image would meet itself."""
    head: Literal["mocov3", "byol", "swav", "barlow_twins", "linear"] = "mocov3"
    """Layout of the student's head; its output width is the teacher's."""
    head_width: Channels | None = None
    """Hidden width of the student's head, if not the layout's own."""


@dataclass(frozen=True, kw_only=True)
class ContrastMethodConfig:
    """Contrastive pre-training of a teacher; the defaults are MoCo v3's."""

    loss: Literal["mocov3", "simclr"] = "mocov3"
    """mocov3: against a momentum encoder. simclr: both views learn; faster at small batches."""
    temperature: Positive = 1.0
    momentum: Share = 0.99
    """mocov3: of the momentum encoder at the start; rises to 1."""
    head_width: Channels = 4096
    dim: Channels = 256
    """Channels of the projection."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer. Nothing here depends on the number of processes."""

    name: Literal["lars", "adamw"] = "lars"
    lr_per_256: Positive = 1.0
    """Peak learning rate for a global batch of 256; scaled linearly."""
    weight_decay: NotNegative = 1e-5
    """On weights of two or more dimensions only."""
    global_batch_size: Count = 1024
    """Images a step, over all processes and accumulation steps."""
    accumulation_steps: Count = 1
    """Forward passes a step."""
    epochs: Count = 100
    warmup_share: Share = 0.1
    """Share of all steps in which the learning rate rises."""
    clip_grad_norm: Positive | None = None
    sync_batch_norm: bool = True
    """Batch statistics over all processes; exists on GPUs only."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how long. Except for seed and max_steps, nothing here changes the result."""

    output_dir: Path | None = None
    """Default: runs/NAME, numbered if taken."""
    name: str | None = None
    """Of the weight in the local store. Default: ARCH.pcd; another one must be ARCH.pcd_WHAT."""
    max_steps: Count | None = None
    """Stop after so many steps, whatever the epochs say; the schedule ends there."""
    seed: Seed = 0
    resume: bool = False
    """Go on from the last checkpoint in output_dir; resuming.py lists what may change."""
    accept_changed_data: bool = False
    """With resume: although the images or the teacher are not those the run began with.

    It is recorded.
    """
    log_every_steps: Count = 10
    checkpoint_every_steps: Count = 500
    keep_checkpoints: Count = 2
    trackers: tuple[str, ...] = ()
    """Beside metrics.jsonl, those of Accelerate: tensorboard, wandb, mlflow, trackio ..."""
    project: str = "pcd_hub"
    """Under which the trackers file the run."""
    run_name: str | None = None
    """Of the run in the trackers. Default: the name of its folder."""
    store: bool = True
    """Put the finished weight into the local store, where timm.create_model finds it."""


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How fast. Nothing here changes a result but by rounding; every switch can be turned off."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: as the launcher says, else bf16 where the device multiplies it itself, else fp32."""
    compile: bool | None = None
    """torch.compile of the networks, on CPUs of the teacher.

    Default: on GPUs, from 1000 steps on.
    """
    channels_last: bool = True
    """Layout of maps and weights in memory."""
    foreach: bool = True
    """The optimizer treats all weights at once."""
    keep_memory: bool = True
    """On CPUs with glibc: freed memory is kept for the next tensor."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """recipes/distill.py."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: PixelMethodConfig = field(default_factory=PixelMethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    run: RunConfig = field(default_factory=RunConfig)
    probe_scenes: ProbeScenes = 0
    """Held-out generated scenes for the closing linear probe; 0 for none.

    It compares random start, student and teacher.
    """


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """recipes/pretrain.py."""

    encoder: ModelConfig = field(default_factory=lambda: ModelConfig(arch="resnet50"))
    data: DataConfig = field(default_factory=lambda: DataConfig(min_crop_area=0.2))
    method: ContrastMethodConfig = field(default_factory=ContrastMethodConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr_per_256=0.6, weight_decay=1e-6)
    )
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    run: RunConfig = field(default_factory=RunConfig)
    probe_scenes: ProbeScenes = 0
    """Held-out generated scenes for the closing linear probe; 0 for none.

    It compares random start and encoder.
    """


_MOCO_TEACHER = "mocov3_r50:r-50-1000ep.pth.tar"

DISTILL: dict[str, DistillConfig] = {
    "quickstart": DistillConfig(
        teacher=TeacherConfig(image_size=64),
        data=DataConfig(
            source="scenes:20000",
            image_size=48,
            min_crop_area=0.3,
            max_crop_area=1.0,
            num_workers=1,
        ),
        method=PixelMethodConfig(temperature=0.2, queue_length=4096, head="linear"),
        optim=OptimConfig(
            name="adamw",
            lr_per_256=3.2e-2,
            weight_decay=0.05,
            global_batch_size=16,
            warmup_share=0.05,
        ),
        run=RunConfig(max_steps=500, checkpoint_every_steps=250),
        probe_scenes=400,
    ),
    "pcd_r18": DistillConfig(teacher=TeacherConfig(source=_MOCO_TEACHER)),
    "pcd_r18_released": DistillConfig(
        teacher=TeacherConfig(source=_MOCO_TEACHER, keep_last_norm=False),
        method=PixelMethodConfig(views="cross"),
        speed=SpeedConfig(precision="fp32"),
        optim=OptimConfig(sync_batch_norm=False),
    ),
}
"""quickstart: offline, CPU, minutes.

pcd_r18: PCD for 100 epochs of ImageNet, with the hyper-parameters of the authors' released code
(github.com/allo-rene/pcd, commit 6b0ad4d). Its choices differ from that code in these: student and
teacher see the same view, as "corresponding pixels" says, not each the other's; the teacher's head
keeps its last BatchNorm, with which it was trained; SyncBN on GPUs; bfloat16 where the GPU has it.

pcd_r18_released: these four as in the released code too. What remains different, in both, are
that code's faults, and the last two points, which leave the method as it is:

- The teacher is in eval mode; there its BatchNorms use, and move with, each batch, so that the mean
  of the pixel head is not the teacher's vector.
- The learning rate is 1.0 for each 256 images of the global batch, 4.0 at 1024; there of the batch
  of one GPU, in whole multiples: 4.0, 2.0, 1.0 and 0.0 on 1, 2, 4 and 8 GPUs.
- It rises and falls at every step; there once an epoch, and the first epoch trains at 0.
- LARS is MoCo v3's: the trust ratio scales the gradient, there the momentum, and the first update
  is 1.9 times as large. With the arguments it passes, that optimizer fails at its first step.
- Crops are resized bicubically, there bilinearly (torchvision's default): there is no option.
- The queue is the same, but capped at half the data set, which ImageNet's is not.
"""

CONTRAST: dict[str, ContrastConfig] = {
    "quickstart_teacher": ContrastConfig(
        encoder=ModelConfig(arch="resnet10t"),
        data=DataConfig(
            source="scenes:1000000:1",
            image_size=48,
            min_crop_area=0.1,
            max_crop_area=0.6,
            hue=0.5,
            gray_probability=0.4,
        ),
        method=ContrastMethodConfig(loss="simclr", temperature=0.1, head_width=1024, dim=128),
        optim=OptimConfig(
            name="adamw",
            lr_per_256=6e-3,
            weight_decay=0.05,
            global_batch_size=128,
            warmup_share=0.03,
        ),
        run=RunConfig(max_steps=1500),
        probe_scenes=400,
    ),
    "mocov3_r50": ContrastConfig(),
    "mocov3_r50_1000ep": ContrastConfig(
        method=ContrastMethodConfig(momentum=0.996),
        optim=OptimConfig(lr_per_256=0.3, weight_decay=1.5e-6, epochs=1000, warmup_share=0.01),
    ),
}
"""quickstart_teacher: the teacher inside the package.

mocov3_r50 and mocov3_r50_1000ep: 100 and 1000 epochs with MoCo v3's learning rate for 256 images,
weight decay and momentum for each (github.com/facebookresearch/moco-v3, CONFIG.md), at a global
batch of 1024 instead of 4096.
"""
