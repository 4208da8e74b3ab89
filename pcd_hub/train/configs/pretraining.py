"""Settings that distillation and contrastive pre-training share."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Literal, TypeVar

from pcd_hub.data.multiband.names import RGB, check_bands
from pcd_hub.data.view_policy import Augment, Switches, ViewPolicy, switches_of, view_policies
from pcd_hub.errors import ConfigError
from pcd_hub.image_size import simplest
from pcd_hub.train.configs.fields import (
    Area,
    Bounds,
    Count,
    CountOrZero,
    HeightWidth,
    NotNegative,
    Positive,
    Share,
    Workers,
)

BandValue = Annotated[float, Bounds(float, -1e9, 1e9)]
ProbeScenes = Annotated[int, Bounds(int, 0, 100_000)]
ChannelMean = Annotated[float, Bounds(float, -1000, 1000)]
ChannelStd = Annotated[float, Bounds(float, 0, 1000, above=True)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone to train."""

    arch: str = "resnet18"
    """A timm architecture, or resnet18_mhsa: ResNet-18 with self-attention after the last stage."""

    def validate(self, group: str) -> None:
        """Reject the name of a weight."""
        architecture, dot, _ = self.arch.partition(".")
        if dot:
            raise ConfigError(
                f"{group}arch {self.arch}: expected an architecture without a weight's tag; "
                f"use {architecture}"
            )


@dataclass(frozen=True, kw_only=True)
class FrozenTeacherConfig:
    """A frozen teacher, its images and their normalisation."""

    source: str = "quickstart"
    """Teacher: quickstart (in the package), auto (the first reachable of a
    list), timm:NAME, timm:ARCH[.TAG]:FILE, hf-hub:ORG/NAME[@REVISION],
    local-dir:DIR, mocov3_r50:FILE, mocov3:ARCH:FILE, resnet:ARCH:FILE ...
    `pcd-hub teachers` lists recommended ones."""
    image_size: HeightWidth | Literal["match"] | None = None
    """Size in pixels to which views are resized for the teacher: the shorter
    side, or height and width. None: the student's size. match: the size
    at which the teacher's feature map has the student's height and width,
    if there is one; otherwise its feature map is resampled."""
    mean: tuple[ChannelMean, ChannelMean, ChannelMean] | None = None
    """Mean of each channel, for images in [0, 1], with which the teacher was
    trained. None: as its source or timm states."""
    std: tuple[ChannelStd, ChannelStd, ChannelStd] | None = None
    """Standard deviation of each channel. None: as its source or timm states."""

    def validate(self, group: str) -> None:
        """Reject mean without std, or the other way round."""
        if (self.mean is None) != (self.std is None):
            given, other = ("std", "mean") if self.mean is None else ("mean", "std")
            raise ConfigError(
                f"{group}{given} is set without {group}{other}; expected both or neither"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training images, and the two augmented views drawn from each."""

    source: tuple[str, ...] = ("scenes:",)
    """Training images, one or several of: a folder (searched recursively), a
    pattern in quotes ('photos/**/*.jpg'), a .txt file with one path a
    line, a .zip file, tar shards ('shards-{000..012}.tar'), any of these
    behind a URL (s3://, gs://, https://), scenes:[COUNT[:SEED]]
    (generated), hf-disk:DIR, hf:ORG/NAME[/CONFIG][:SPLIT][#COLUMN] or
    hf-stream: followed by the same."""
    shuffle_buffer: Count = 1000
    """For hf-stream only: number of encoded images that each loader process
    shuffles; 1 keeps the stored order. Other sources are shuffled as a
    whole."""
    image_size: HeightWidth = 224
    """Height and width of a view in pixels: one number for both, or two (192 320)."""
    min_crop_area: Area = 0.08
    """Smallest random crop, as a share of the image area."""
    max_crop_area: Area = 1.0
    """Largest random crop, as a share of the image area."""
    augment: Augment = "default"
    """default: BYOL's views: crop, flip, colour jitter, gray, blur and
    solarize. light: half the jitter without hue shift, rare blur, no gray
    and no solarize, for medical, satellite and other images whose colours
    are information. none: random crops alone."""
    flip: bool | None = None
    """Mirror left and right. None: as in augment. Switch it off for
    documents and for scenes in which left and right differ."""
    vertical_flip: bool | None = None
    """Mirror top and bottom, which suits satellite and microscope images.
    None: off."""
    color_jitter: bool | None = None
    """Change brightness, contrast, saturation and hue. None: as in augment."""
    gray: bool | None = None
    """Convert some views to gray. None: as in augment. Switch it off if
    colours are information."""
    blur: bool | None = None
    """Blur views. None: as in augment. Switch it off if fine texture is
    information, as in microscope images."""
    solarize: bool | None = None
    """Invert the bright pixels of some views. None: as in augment."""
    hue: Annotated[float, Bounds(float, 0, 0.5)] | None = None
    """Largest hue shift of the colour jitter, as a share of the colour
    circle; 0 keeps the hues, as for medical images. None: 0.1, or 0 with
    augment light."""
    gray_probability: Share | None = None
    """Probability of converting a view to grayscale. None: 0.2 if gray is on."""
    num_workers: Workers | None = None
    """Loader processes per training process. None: 1 on a CPU, up to 16 with a GPU."""
    bands: tuple[str, ...] = RGB
    """Names of the images' bands in the order of the files (gray; red green
    blue nir). Their number is that of the student's input channels.
    Colour jitter changes red, green and blue as colours, and the
    brightness and contrast of other bands."""
    band_range: tuple[BandValue, ...] = ()
    """For other bands than red, green, blue: the values, LOW HIGH, that
    become black and white in all images. Empty: 0 255 or 0 65535, by
    their type."""
    band_mean: tuple[Share, ...] = ()
    """Mean of each band after scaling to 0..1. Empty: ImageNet's for red,
    green, blue and gray, others are measured on 64 images before the
    first step."""
    band_std: tuple[Area, ...] = ()
    """Standard deviation of each band; see band-mean."""
    view_epochs: CountOrZero = 0
    """Epochs after which the views of each image repeat, which are then the
    same for all seeds. 0: new views in every epoch, or as many as the
    teacher's cache has."""

    def validate(self, group: str) -> None:
        """Reject crop areas in the wrong order, and strengths of what is switched off."""
        if self.min_crop_area > self.max_crop_area:
            raise ConfigError(
                f"{group}min-crop-area {self.min_crop_area} is larger than "
                f"{group}max-crop-area {self.max_crop_area}; expected at most that"
            )
        parts = switches_of(view_policies(self.augment, self.switches))
        for part, is_on, strength in (
            ("gray", parts.gray, "gray_probability"),
            ("color_jitter", parts.color_jitter, "hue"),
        ):
            value = getattr(self, strength)
            if value and not is_on:
                switch, number = (f"{group}{name.replace('_', '-')}" for name in (part, strength))
                raise ConfigError(
                    f"{number} {value}: {switch} is off (with {group}augment {self.augment}); "
                    f"set {switch} True or {number} 0"
                )
        check_bands(self.bands)
        self._check_band_values(group)

    def _check_band_values(self, group: str) -> None:
        low_high = self.band_range
        if low_high and not (len(low_high) == 2 and low_high[0] < low_high[1]):
            raise ConfigError(
                f"{group}band-range {' '.join(map(str, low_high))}: expected LOW HIGH, the lower "
                "first"
            )
        for name, values in (("mean", self.band_mean), ("std", self.band_std)):
            if values and len(values) != len(self.bands):
                raise ConfigError(
                    f"{group}band-{name} has {len(values)} values, expected {len(self.bands)}, one "
                    f"for each of {group}bands {' '.join(self.bands)}"
                )
        if self.bands == RGB and low_high:
            low, high = low_high
            raise ConfigError(
                f"{group}band-range {low:g} {high:g}: red, green and blue are read as 8 bits; for "
                f"files of other values give the bands names of their own: {group}bands r g b "
                f"--teacher.bands r g b {group}band-range {low:g} {high:g}"
            )

    @property
    def switches(self) -> Switches:
        """Parts of the augmentation that are switched on or off."""
        return Switches(**{one.name: getattr(self, one.name) for one in fields(Switches)})

    def view_policies(self) -> tuple[ViewPolicy, ViewPolicy]:
        """Return the distributions of the first and the second view."""
        return view_policies(
            self.augment,
            self.switches,
            crop_area=(self.min_crop_area, self.max_crop_area),
            hue=self.hue,
            gray_probability=self.gray_probability,
        )


DataConfigT = TypeVar("DataConfigT", bound=DataConfig)


def resolve_augmentation(data: DataConfigT) -> DataConfigT:
    """Return the data's settings with size and augmentation resolved."""
    first, second = pair = data.view_policies()
    switches = switches_of(pair)
    return replace(
        data,
        **asdict(switches),
        image_size=simplest(data.image_size),
        hue=first.hue if switches.color_jitter else 0.0,
        gray_probability=second.gray_probability,
    )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule. Results do not depend on the number of processes."""

    name: Literal["lars", "adamw", "muon"] = "lars"
    """Optimizer. muon: for matrices and convolutions (of a distillation
    without those of its heads), with AdamW for all other parameters; a
    step costs more, and fewer are needed."""
    lr_per_256: Positive = 1.0
    """Peak learning rate for a global batch of 256; scaled linearly with the global batch."""
    weight_decay: NotNegative = 1e-5
    """Weight decay; not applied to biases and norms."""
    global_batch_size: Count = 1024
    """Images per step, summed over processes and accumulation steps."""
    accumulation_steps: Count = 1
    """Forward and backward passes per step."""
    epochs: Count = 100
    """Passes over the images, if --run.max-steps is None. Given on the
    command line, it replaces the max-steps of the configuration."""
    warmup_share: Share = 0.1
    """Share of all steps with linear warm-up; a half cosine to 0 follows."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the gradient. None: no clipping."""
    sync_batch_norm: bool = True
    """Share batch statistics between processes (SyncBatchNorm); GPUs only."""


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Performance. Changes results by rounding at most."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision. auto: the launcher's setting, else bf16 if the device
    supports it in hardware, else fp32."""
    compile: bool | None = None
    """Compile the networks with torch.compile (on a CPU the teacher only).
    None: on a GPU if the run has at least 1000 steps."""
    channels_last: bool = True
    """Use the channels-last memory format."""
    foreach: bool = True
    """Use the optimizer's foreach or fused implementation."""
    keep_memory: bool = True
    """On CPUs with glibc: do not return freed memory to the system."""
