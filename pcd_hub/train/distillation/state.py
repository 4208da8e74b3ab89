"""Everything that a distillation consists of."""

import dataclasses
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.resident.images import ResidentImages
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.data.survey.result import Survey
from pcd_hub.method.distiller import Distiller
from pcd_hub.method.moments import ChannelMoments
from pcd_hub.method.queue import KeyQueue
from pcd_hub.models.teachers import Teacher
from pcd_hub.report.run_report import Setting
from pcd_hub.train.batches import Normalise
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.held_out.held_out import HeldOut
from pcd_hub.train.held_out.plateau import EarlyEnd
from pcd_hub.train.monitors.early_verdict import EarlyVerdict
from pcd_hub.train.probe_data.scores import ProbeScores
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.student.weights import StartWeight
from pcd_hub.train.students.own_state import OwnState
from pcd_hub.train.students.shared import SharedStep
from pcd_hub.train.teacher.cache.targets import FromTeacher, Targets
from pcd_hub.weights.input_bands import InputBands


@dataclasses.dataclass(kw_only=True)
class Distillation:
    """A distillation that is ready to start, or finished."""

    config: DistillConfig
    config_name: str
    accelerator: Accelerator
    folder: RunFolder = dataclasses.field(init=False)
    """Set when everything else is built."""
    source: ImageSource | ImageStream
    plan: BatchPlan
    teacher: Teacher
    distiller: Distiller
    """Student, head and loss, not wrapped by the Accelerator."""
    student: nn.Module
    """The timm model inside ``distiller``."""
    start: nn.Module
    """A copy of the student before training."""
    start_weight: StartWeight | None
    """The weights that the student starts from; None if they are random."""
    untrained: tuple[str, ...]
    """Parameters of the student that do not affect its feature map."""
    queue: KeyQueue | None
    moments: ChannelMoments | None
    bands: InputBands
    normalise: Normalise
    own_state: OwnState
    """Random states and more, in use while this student is trained."""
    shared: SharedStep = dataclasses.field(default_factory=SharedStep)
    """Computed once for all students of the run."""
    targets: Targets = dataclasses.field(default_factory=FromTeacher)
    """Source of the teacher's feature maps: the teacher itself, or its cache."""
    held_out: HeldOut | None = None
    """Scores on the held-out images; None without any."""
    held_out_source: ImageSource | None = None
    """The held-out images, for pictures."""
    probe_data: ProbeScores | None = None
    """Scores on labelled images; None without any."""
    early_verdict: EarlyVerdict | None = None
    """What is logged of the run as it goes; None before its first step."""
    decisions: tuple[Setting, ...] = ()
    """Settings that were derived, with the reason of each."""
    survey: Survey | None = None
    """Survey of the images; None if they were not surveyed, and in a resumed run on all processes
    but the main one."""
    export: Path | None = None
    """Folder of the finished weight; None before it is written, and on other processes."""

    @property
    def images(self) -> ImageSource | ImageStream | ResidentImages:
        """The images from which batches are made."""
        return self.source if self.shared.resident is None else self.shared.resident

    @property
    def scored(self) -> "dict[str, HeldOut | ProbeScores]":
        """What scores the student during the run, by name: part of the checkpoints."""
        scores = {"held_out": self.held_out, "probe_data": self.probe_data}
        return {name: each for name, each in scores.items() if each is not None}

    @property
    def end(self) -> EarlyEnd:
        """Length of the run, which held-out images may shorten."""
        return EarlyEnd(self.plan.total_steps) if self.held_out is None else self.held_out.end

    def begin_verdict(self) -> EarlyVerdict:
        """Begin the early verdict of the run, which has said nothing yet."""
        self.early_verdict = EarlyVerdict(
            self.folder.path / "metrics.jsonl",
            total_steps=self.plan.total_steps,
            student=self.config.student.arch,
            teacher_faults=self.teacher.faults,
        )
        return self.early_verdict

    @property
    def start_label(self) -> str:
        """Name of ``start`` in tables: "random weights", or "start (resnet18.a1_in1k)"."""
        return f"start ({self.start_weight.name})" if self.start_weight else "random weights"

    @property
    def exported_step(self) -> int:
        """Steps of training of the finished student."""
        if self.held_out is None:
            return self.plan.total_steps
        exported = self.held_out.exported
        return exported.step if exported else self.held_out.end.total_steps

    @property
    def teacher_statistics(self) -> dict[str, nn.Module]:
        """Key queue or channel moments by name: part of the checkpoints, not of the network."""
        parts = {"queue": self.queue, "moments": self.moments}
        return {name: part for name, part in parts.items() if part is not None}
