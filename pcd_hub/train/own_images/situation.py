"""What derived settings depend on, and a derived setting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pcd_hub.image_size import ImageSize

SIZE_STEP = 32
"""Sizes are multiples of it: the stride of most backbones."""

DEFAULT_HOURS = {"cpu": 1.0, "gpu": 4.0}

LENGTH = ("run.max_steps", "optim.epochs")
"""Options that set the length; if one is given, the length is not derived."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Everything that the derived values depend on."""

    num_images: int | None
    """Images to train on; None for a stream."""
    short_side: int
    """Median of the images' shorter sides, in pixels."""
    device: str = "cpu"
    """Type of the devices, such as ``cpu`` or ``cuda``."""
    num_devices: int = 1
    """Processes, each with its own device."""
    memory: float | None = None
    """Memory of a GPU in bytes; None if it is unknown or the device is a CPU."""
    cores: int = 2
    """CPU cores for each process."""
    precision: str = "fp32"
    """Precision of the Accelerator: fp32, bf16 or fp16."""
    student_patch: int = SIZE_STEP
    """The student's image size is a multiple of it."""
    student_has_finer_map: bool = False
    """The map before the student's last one is finer than that."""
    bytes_per_pixel: float | None = None
    """Memory that the student's backward pass needs per pixel of a view, in fp32."""
    has_shipped_start: bool = False
    """pcd_hub ships a weight of the student, and the images are red, green and blue."""
    teacher: str = ""
    """The teacher's source."""
    teacher_has_head: bool = False
    """The teacher has a trained projection head."""
    teacher_patch: int = SIZE_STEP
    """The teacher's image size is a multiple of it."""
    teacher_size: ImageSize | None = None
    """The only size of its images that the teacher takes, if it states one."""
    loss: str = "pixel_info_nce"
    accumulation_steps: int = 1
    hours: float | None = None
    """Hours of the whole run; None for the default."""
    seconds_per_step: float | None = None
    """None before a step has been measured."""
    seconds_used: float = 0.0
    """Seconds that the run has taken before its first step."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Values that the user sets, by option; they are not derived."""

    @property
    def kind(self) -> str:
        """``cpu``, or ``gpu`` for every other device."""
        return "cpu" if self.device == "cpu" else "gpu"

    @property
    def hours_or_default(self) -> float:
        """Hours of the whole run."""
        return DEFAULT_HOURS[self.kind] if self.hours is None else self.hours

    @property
    def has_length(self) -> bool:
        """Whether the user sets the number of steps or epochs."""
        return any(self.given.get(option) is not None for option in LENGTH)


Values = Mapping[str, Any]
"""The values decided so far, and the given ones, by option."""
