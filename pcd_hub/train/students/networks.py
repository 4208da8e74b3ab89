"""Build the students of a run, and let them share the teacher."""

import logging
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.data.loader import Batch
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.image_size import format_size
from pcd_hub.models.teachers import Teacher
from pcd_hub.train.batches import Normalise
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.distillation.building import build
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.students.configs import each_student
from pcd_hub.train.students.shared import Computed, SharedStep
from pcd_hub.weights.input_bands import InputBands

log = logging.getLogger("pcd_hub")


def build_students(
    accelerator: Accelerator,
    config: DistillConfig,
    config_name: str,
    source: ImageSource | ImageStream,
    given: Teacher | None = None,
) -> tuple[Distillation, ...]:
    """Build the networks of every student, each as if it were alone, with one teacher.

    Args:
        accelerator: The run's Accelerator.
        config: The configuration, with one architecture or several.
        config_name: Its name.
        source: Images to train on.
        given: A teacher from Python, instead of ``teacher.source``.
    """
    configs = each_student(config)
    students = []
    for number, own in enumerate(configs, start=1):
        if len(configs) > 1:
            log.info("student %d of %d: %s", number, len(configs), own.student.arch)
        teacher = given if given is None or len(configs) == 1 else own_teacher(given)
        students.append(build(accelerator, own, config_name, source, teacher))
    if len(students) > 1:
        share(students)
    return tuple(students)


def own_teacher(given: Teacher) -> Teacher:
    """Return a teacher with the same networks, but sizes of its own."""
    head = given.head if isinstance(given.head, nn.Sequential) else None
    own = Teacher(given.grid, head, given.facts)
    own.training_size, own.warnings = given.training_size, given.warnings
    own.faults = given.faults
    return own


def share(students: Sequence[Distillation]) -> None:
    """Let the students read each batch once, and run each teacher network once.

    Teachers with the same weights and input size become one; each student resamples its feature
    map to a grid of its own.
    """
    step = SharedStep()
    for d in students:
        d.shared = step
        d.normalise = SharedNormalise(
            step.images,
            d.bands,
            d.accelerator.device,
            channels_last=d.config.speed.channels_last,
        )
    for teachers in each_size([d.teacher for d in students]):
        step.maps += share_networks(teachers, step.images)
    if not all(is_same(students[0].teacher, d.teacher) for d in students):
        sizes = (
            f"{d.config.student.arch} {format_size(d.config.teacher.image_size or 0)} px"
            for d in students
        )
        log.info("the teacher runs once for each size of its input: %s", ", ".join(sizes))


def each_size(teachers: Sequence[Teacher]) -> Iterator[list[Teacher]]:
    """Yield the teachers, then their parts for images of each other size."""
    yield list(teachers)
    for size in teachers[0].other_sizes:
        yield [cast("Teacher", teacher.other_sizes[size]) for teacher in teachers]


def share_networks(teachers: Sequence[Teacher], images: Computed[Batch]) -> list[Computed[Tensor]]:
    """Let equal teachers use one network; return the feature maps of each network.

    Args:
        teachers: The teacher of every student.
        images: The images of the step.
    """
    networks: list[tuple[Teacher, Computed[Tensor]]] = []
    for teacher in teachers:
        same = next((found for found in networks if is_same(found[0], teacher)), None)
        if same is None:
            same = teacher, Computed(images)
            networks.append(same)
        teacher.use_network_of(same[0], same[1].of)
    return [maps for _, maps in networks]


def is_same(one: Teacher, other: Teacher) -> bool:
    """Return whether two teachers compute the same feature maps, before they are resampled."""
    if one.input_size != other.input_size or one.facts.sha256 != other.facts.sha256:
        return False
    before, after = one.state_dict(), other.state_dict()
    return before.keys() == after.keys() and all(
        torch.equal(value, after[name]) for name, value in before.items()
    )


class SharedNormalise(Normalise):
    """A student's normalisation of images that all students share.

    Args:
        images: The images of the step.
        bands: The student's bands.
        device: Device of the images.
        channels_last: Memory format of the images.
    """

    def __init__(
        self,
        images: Computed[Batch],
        bands: InputBands,
        device: torch.device,
        *,
        channels_last: bool,
    ) -> None:
        super().__init__(bands, device, channels_last=channels_last)
        self._shared = images

    def images(self, batch: Batch) -> Float[Tensor, "two_b bands height width"]:
        """Return images in [0, 1]: the first view of every image, then every second view."""
        return self._shared.of(batch, super().images)
