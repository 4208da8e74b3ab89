"""Named configurations of ``recipes/distill.py``."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.fields import (
    Bounds,
    Count,
    HeightWidth,
    ImageSide,
    Positive,
    Share,
)
from pcd_hub.train.configs.labelled import ProbeDataConfig
from pcd_hub.train.configs.method import PixelMethodConfig
from pcd_hub.train.configs.pretraining import (
    DataConfig,
    FrozenTeacherConfig,
    ModelConfig,
    OptimConfig,
    ProbeScenes,
    SpeedConfig,
)
from pcd_hub.train.configs.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(FrozenTeacherConfig):
    """The frozen teacher."""

    bands: tuple[str, ...] = ()
    """The three of --data.bands that the teacher gets as red, green and blue
    (false colours). Empty: the bands of these names, or a single band."""
    keep_last_norm: bool = True
    """Keep the BatchNorm without weights that ends a head like MoCo v3's.
    The released PCD code drops it."""
    adaptor: Literal["spatial", "plain"] = "spatial"
    """How a projection head is applied to feature maps. spatial: PCD's
    SpatialAdaptor, whose mean over an image is the head's output for the
    mean. plain: with the ReLU of each location, for comparison."""
    fold_batch_norms: bool = True
    """Fold BatchNorms into the convolutions before them; faster, identical up to rounding."""
    cache: str = "off"
    """Keep the teacher's feature maps on disk, so that it sees every view
    only once. The views of each image then repeat (--data.view-epochs).
    auto: if the images are seen often enough and there is room, in the
    local store. Or a folder for all caches, which several runs may share.
    off: ask the teacher at every step. `pcd-hub cache` lists and removes
    caches."""
    cache_gb: Positive = 20.0
    """Largest size of the cache in GB."""

    def validate(self, group: str) -> None:
        """Reject mean without std, or the other way round, and a cache without a name."""
        super().validate(group)
        if not self.cache.strip():
            raise ConfigError(f"{group}cache '{self.cache}': expected auto, off or a folder")


@dataclass(frozen=True, kw_only=True)
class StudentConfig(ModelConfig):
    """The backbone to train, and the weights that it starts from."""

    arch: str = "resnet18"
    """A timm architecture, or resnet18_mhsa: ResNet-18 with self-attention
    after the last stage. Several, separated by commas
    (resnet18,mobilenetv4_conv_small), are trained in one pass over the
    images with one teacher, each as if it were alone, in OUTPUT-DIR/ARCH."""
    weights: str = "none"
    """Weights that the student starts from. none: random. shipped: the
    weight of the architecture that pcd_hub ships (resnet18,
    mobilenetv4_conv_small). auto: shipped if there is one for every
    student and the images are RGB, otherwise none. pretrained: timm's
    default weights of the architecture. Or a timm or pcd_hub weight of
    this architecture by name (resnet18.a1_in1k, resnet18.pcd),
    hf-hub:ORG/NAME, local-dir:DIR, or a checkpoint FILE (.safetensors,
    .pth, .pt, .bin, .ckpt)."""

    def validate(self, group: str) -> None:
        """Reject the name of a weight as an architecture, and weights without a name."""
        several = self.architectures
        for arch in several:
            if not arch or several.count(arch) > 1:
                raise ConfigError(
                    f"{group}arch {self.arch}: expected different ones, separated by commas"
                )
            ModelConfig(arch=arch).validate(group)
        if not self.weights.strip():
            raise ConfigError(
                f"{group}weights '{self.weights}': expected none, shipped, auto, pretrained, a "
                "name or a file"
            )

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architecture of each student."""
        return tuple(arch.strip() for arch in self.arch.split(","))


@dataclass(frozen=True, kw_only=True)
class DistillOptimConfig(OptimConfig):
    """Optimizer and schedule. Results do not depend on the number of processes."""

    head_only_share: Share = 0.0
    """Share of all steps, from the first one, that train the head alone: the
    student's weights stay as they are, except for the running statistics
    of its batch norms."""


@dataclass(frozen=True, kw_only=True)
class DistillDataConfig(DataConfig):
    """Training images, the held-out ones, and the two augmented views drawn from each."""

    held_out: Annotated[float, Bounds(float, 0, 0.5)] = 0.0
    """Share of the images that is never trained on, 0.02 for example, at
    most 128 images: they score the student during the run. 0: none. A
    small set holds out more, a set of fewer than 20 images or a stream
    none."""
    early_image_size: HeightWidth | None = None
    """Height and width of the views in the first steps, which are cheaper
    with smaller views: 64 with an image-size of 96, for example. None:
    image-size."""
    early_share: Share = 0.0
    """Share of all steps, from the first one, with views of
    early-image-size. 0: none."""
    resident: Literal["auto", "on", "off"] = "off"
    """on: decode each image once and keep it, reduced to resident-side, in
    the memory of the device, or if it is too small, in that of the host;
    the device renders the views. The crops and colours are those of off,
    up to interpolation. auto: on a GPU, if the images fit into its
    memory. off: decode the files in every epoch."""
    resident_side: ImageSide | None = None
    """Short side in pixels to which resident images are reduced. None: the
    side at which seven of eight random crops are at least as large as
    their view."""

    def validate(self, group: str) -> None:
        """Reject a side of resident images without resident images."""
        super().validate(group)
        if self.resident == "off" and self.resident_side is not None:
            raise ConfigError(
                f"{group}resident-side {self.resident_side}: {group}resident is off; set it to on "
                "or auto"
            )


@dataclass(frozen=True, kw_only=True)
class DistillRunConfig(RunConfig):
    """Output folder, length, seed and logging.

    Only seed, length and, with held-out images, stop-on-plateau and measure-every-steps change the
    result.
    """

    measure_every_steps: Count | None = None
    """Steps between two scores on the held-out images, and on those of
    --probe-data. None: 20 times over the run (10 on --probe-data), fewer
    if that would take more than 2 % of its time."""
    stop_on_plateau: bool = False
    """Let the learning rate decay to 0 and end the run when the loss on the
    held-out images no longer improves."""
    name: str | None = None
    """Name of the finished weight: ARCH.pcd_SUFFIX, or pcd_SUFFIX for the
    student's architecture. None: ARCH.pcd, or ARCH.pcd_quickstart if all
    images are generated scenes."""
    store: bool = True
    """Add the finished weight to the local store, where pcd_hub.create_model
    finds it by its name, and timm.create_model if that is ARCH.pcd."""
    hours: Positive | None = None
    """Length of the whole run in hours, instead of max-steps: a few steps
    are measured before the first one, and set max-steps."""
    add_hours: Positive | None = None
    """With --run.resume: hours to train after the steps that are done, instead of max-steps."""

    def validate(self, group: str) -> None:
        """Reject two lengths, and hours to add to a new run."""
        lengths = {"max-steps": self.max_steps, "hours": self.hours, "add-hours": self.add_hours}
        given = [f"{group}{name} {value}" for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} both set the length; expected one of them")
        if self.add_hours is not None and not self.resume:
            raise ConfigError(
                f"{group}add-hours {self.add_hours} is for a run that is resumed; use --resume RUN "
                f"--hours {self.add_hours}, or {group}hours for a new run"
            )


DERIVED = frozenset(
    {
        *("student.weights", "data.image_size", "data.min_crop_area", "data.num_workers"),
        *("teacher.image_size", "method.queue_length", "method.head"),
        *("method.feature_maps", "method.centre_targets"),
        *("optim.name", "optim.global_batch_size", "optim.lr_per_256", "optim.warmup_share"),
        *("optim.weight_decay", "optim.head_only_share", "speed.precision", "speed.compile"),
        *("run.max_steps", "run.checkpoint_every_steps", "run.log_every_steps"),
    }
)
"""Fields that may be derived (``pcd_hub/train/own_images/rule.py``)."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distil a frozen teacher into a small student, without labels (PCD, arXiv:2211.00218)."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DistillDataConfig = field(default_factory=DistillDataConfig)
    method: PixelMethodConfig = field(default_factory=PixelMethodConfig)
    optim: DistillOptimConfig = field(default_factory=DistillOptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    run: DistillRunConfig = field(default_factory=DistillRunConfig)
    probe_data: ProbeDataConfig = field(default_factory=ProbeDataConfig)
    derive: bool = False
    """Derive all values that are not given from images, student and device."""
    probe_scenes: ProbeScenes = 0
    """Number of generated scenes for a linear probe of the start, student
    and teacher after training; 0: no probe."""

    @property
    def derived(self) -> frozenset[str]:
        """Fields whose values are not used, because they are derived unless they are given."""
        return DERIVED | {"optim.epochs"} if self.derive else frozenset()


_MOCO_TEACHER = "mocov3_r50:r-50-1000ep.pth.tar"

DISTILL: dict[str, DistillConfig] = {
    "quickstart": DistillConfig(
        teacher=TeacherConfig(image_size=64),
        student=StudentConfig(weights="auto"),
        data=DistillDataConfig(
            source=("scenes:20000",),
            image_size=48,
            min_crop_area=0.3,
            max_crop_area=1.0,
            num_workers=1,
        ),
        method=PixelMethodConfig(temperature=0.2, queue_length=4096, head="linear"),
        optim=DistillOptimConfig(
            name="adamw",
            lr_per_256=3.2e-2,
            weight_decay=0.05,
            global_batch_size=16,
            warmup_share=0.05,
        ),
        run=DistillRunConfig(name="pcd_quickstart", max_steps=200, checkpoint_every_steps=100),
        probe_scenes=400,
    ),
    "own_images": DistillConfig(
        teacher=TeacherConfig(source="auto"),
        data=DistillDataConfig(source=(), held_out=0.02),
        run=DistillRunConfig(name="pcd_own_images"),
        derive=True,
    ),
    "pcd_r18": DistillConfig(teacher=TeacherConfig(source=_MOCO_TEACHER)),
    "pcd_r18_released": DistillConfig(
        teacher=TeacherConfig(source=_MOCO_TEACHER, keep_last_norm=False),
        method=PixelMethodConfig(views="cross"),
        optim=DistillOptimConfig(sync_batch_norm=False),
        speed=SpeedConfig(precision="fp32"),
    ),
}
"""quickstart: generated scenes, from the shipped weight; runs offline on a CPU in minutes.

own_images: a folder of images, with settings that follow from them, the device and --run.hours
(pcd_hub/train/own_images/rule.py).

pcd_r18: PCD for 100 epochs of ImageNet, with the hyper-parameters of the authors' released code
(github.com/allo-rene/pcd, commit 6b0ad4d). It differs from that code in four choices: student and
teacher see the same view, as the paper's "corresponding pixels" implies, instead of each other's;
the teacher's head keeps its last BatchNorm, with which it was trained; SyncBatchNorm on GPUs;
bfloat16 where the GPU supports it.

pcd_r18_released: these four as in the released code. Both configurations still differ from it in
the following; all but the last two points are defects of that code:

- The teacher is in eval mode. There it is in training mode: its BatchNorms use, and are updated by,
  each batch, so that the mean of the pixel head is not the teacher's vector.
- The learning rate is 1.0 per 256 images of the global batch, 4.0 at 1024. There it is computed
  from the batch of one GPU, in whole multiples: 4.0, 2.0, 1.0 and 0.0 on 1, 2, 4 and 8 GPUs.
- It changes at every step. There it changes once per epoch, and the first epoch trains at 0.
- LARS is MoCo v3's: the trust ratio scales the gradient. There it scales the momentum, and the
  first update is 1.9 times as large; with the arguments that are passed, that optimizer fails at
  its first step.
- Crops are resized with bicubic interpolation, there bilinearly (torchvision's default). There is
  no option for it.
- The queue is the same, but limited to half the data set, which has no effect on ImageNet.
"""
