"""Open and check the labelled images of ``--probe-data`` before the first step, and read them."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.data.multiband.names import RGB
from pcd_hub.data.sources.protocols import ImageSource, ImageStream
from pcd_hub.data.survey.shared import equal_files, pictures_of
from pcd_hub.errors import ConfigError, DataError, PCDHubError, StudentError
from pcd_hub.evaluate.results import data_sha256
from pcd_hub.evaluate.segmentation_probe import SegmentationProbe
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.configs.labelled import ProbeDataConfig
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.held_out.history import History
from pcd_hub.train.held_out.plateau import measure_interval
from pcd_hub.train.held_out.unchanged import unchanged
from pcd_hub.train.labelled_splits import open_segmentation_splits
from pcd_hub.train.launch import on_main_process
from pcd_hub.train.probe_data.scores import LabelledImages, ProbeScores
from pcd_hub.train.results.compared import student_model

log = logging.getLogger("pcd_hub")

TRAINING: dict[str, Any] = {"steps": 100, "batch_size": 16, "in_memory": True}
"""A quarter of the steps of ``pcd-hub probe`` with half its batch, at the size of the images: on 64
and 59 photographs of 4 classes at 96 px, the shipped ResNet-18 had a mean IoU of 53.0 % (3 seeds of
the batches, 52.4 to 53.5) instead of 53.6 % (53.3 to 53.8) after 200 steps with the whole batch."""

FEWEST, MOST = 2, 10
"""Measurements in a run, besides that of the start. One took as long as 2.4 steps of 16 images
(MobileNetV4-S, 96 px, 187 labelled images, 5 measurements of a run on 2 shared cores)."""


def check_probe_data(accelerator: Accelerator, config: DistillConfig) -> LabelledImages | None:
    """Open the labelled images and check all masks; None if none are given.

    The main process reads them, and every process gets the outcome.

    Raises:
        ConfigError: If an option is wrong, or the training images have other bands.
        DataError: If the set or a split is missing or invalid, or its masks have no classes.
    """
    if not config.probe_data.source:
        return None
    if config.data.bands != RGB:
        raise ConfigError(
            f"--probe-data {config.probe_data.source}: labelled images are RGB, found --data.bands "
            f"{' '.join(config.data.bands)}; leave it out"
        )
    opened: list[SegmentationProbe] = []

    def open_splits() -> tuple[int, str]:
        with _naming_probe_data(config.probe_data):
            train, test = (
                _part(split, config.probe_data.num_images)
                for split in open_segmentation_splits(config.probe_data)
            )
            for images, least in ((train, 2), (test, 1)):
                remedy = ", or raise --probe-data.num-images"
                images.check_labelled(least=least, read_all=True, remedy=remedy)
        opened.append(SegmentationProbe(train, test, **TRAINING))
        return len(train) + len(test), data_sha256(train.fingerprint(), test.fingerprint())

    count, digest = on_main_process(accelerator, open_splits)
    return LabelledImages(probe=next(iter(opened), None), num_images=count, sha256=digest)


def read_probe_data(
    students: Sequence[Distillation],
    labelled: LabelledImages | None,
    source: ImageSource | ImageStream,
) -> LabelledImages | None:
    """Read the labelled images on the main process, and try every student on one of them.

    Args:
        students: The students.
        labelled: The labelled images, opened.
        source: The images to distil on; a warning names test images that are among them.

    Raises:
        DataError: On every process, if an image cannot be read.
        StudentError: On every process, if a student cannot take images of this size.
    """
    if labelled is None:
        return None
    first = students[0]
    data = first.config.probe_data
    found = [labelled]

    def read() -> None:
        assert labelled.probe is not None
        assert data.image_size is not None, "resolve() fills it in"
        probe = dataclasses.replace(
            labelled.probe, image_size=data.image_size, num_workers=first.config.data.num_workers
        )
        with _naming_probe_data(data):
            for d in students:
                _try(d, probe)
        _warn_of_shared_images(probe.test, source)
        found[0] = labelled._replace(probe=probe)

    on_main_process(first.accelerator, read)
    return found[0]


def open_probe_scores(d: Distillation, labelled: LabelledImages | None) -> ProbeScores | None:
    """Prepare the scores of a student on the labelled images; call it on every process."""
    if labelled is None:
        return None
    total_steps, optim = d.plan.total_steps, d.config.optim
    interval = measure_interval(
        total_steps, optim.global_batch_size, labelled.num_images, fewest=FEWEST, most=MOST
    )
    return ProbeScores(
        accelerator=d.accelerator,
        history=History(
            d.accelerator,
            d.folder,
            name="probe_data",
            every_steps=d.config.run.measure_every_steps or interval,
            end=d.end,
        ),
        student=student_model(d),
        labelled=labelled,
    )


def _part(images: SegmentationSet, most: int) -> SegmentationSet:
    """Return at most ``most`` images, spread evenly over the set."""
    count = min(most, len(images))
    if count == len(images):
        return images
    rows = [number * len(images) // count for number in range(count)]
    return images.take(rows, name=f"{images.name}, {count} of {len(images)}")


def _try(d: Distillation, probe: SegmentationProbe) -> None:
    try:
        model = student_model(d)
        with unchanged(model.model, d.accelerator.device):
            probe.check(probe.features(model))
    except StudentError as error:
        raise StudentError(
            f"{d.config.student.arch}: {error}; set --probe-data.image-size"
        ) from error


def _warn_of_shared_images(test: SegmentationSet, source: ImageSource | ImageStream) -> None:
    """Warn of test images that are also distilled on, as far as their files are equal."""
    if shared := equal_files(pictures_of(test), source):
        log.warning(
            "%d of %d test images of --probe-data are also among the images to distil on, such as "
            "%s (%s): their mean IoU is not that of new images; leave them out of the images",
            *(len(shared), len(test), *shared[0]),
        )


@contextmanager
def _naming_probe_data(data: ProbeDataConfig) -> Iterator[None]:
    """Name the option and its group in the errors of the block."""
    try:
        yield
    except PCDHubError as error:
        text = str(error).replace("--data.", "--probe-data.")
        kind = type(error) if isinstance(error, ConfigError | StudentError) else DataError
        raise kind(f"--probe-data {data.source}: {text}") from error
