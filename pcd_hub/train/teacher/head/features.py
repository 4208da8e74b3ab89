"""A teacher's pooled features of several views of each image: computed once, kept on disk.

A record holds the two views of one pair, in float16. Records are computed in batches that do not
depend on where a run was interrupted, so that a resumed run computes the same values.
"""

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.loader import DecodeForViews
from pcd_hub.data.reading import read_batches
from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.data.views import TwoViewTransform, concatenate_views
from pcd_hub.errors import CheckpointError, DataError, TeacherError
from pcd_hub.evaluate.progress import progress
from pcd_hub.image_size import height_width
from pcd_hub.models.teachers import Teacher
from pcd_hub.train.signals import StoppedRun, StopRequest
from pcd_hub.train.teacher.cache.store import RecordStore, Rows, Slots

PAIRS_PER_BATCH = 32
"""Pairs of views in one forward pass of the teacher."""
_ROWS_PER_READ = 1024

Images = Int[np.ndarray, " n"]


class PooledFeatures:
    """The pooled features of ``2 * view_epochs`` views of each image.

    Args:
        folder: Folder of the records, which is created if it does not exist.
        num_images: Number of images.
        view_epochs: Pairs of views of each image.
        channels: Channels of the teacher's feature map.

    Raises:
        DataError: If the folder has records of another number or size.
        OSError: If it cannot be written.
    """

    def __init__(self, folder: Path, *, num_images: int, view_epochs: int, channels: int) -> None:
        self.folder = folder
        self.num_images = num_images
        self.view_epochs = view_epochs
        self.channels = channels
        self.store = RecordStore(
            folder, num_records=num_images * view_epochs, record_bytes=record_bytes(channels)
        )

    @property
    def num_views(self) -> int:
        """Views of each image."""
        return 2 * self.view_epochs

    def of(self, images: Images, views: Images) -> Float[Tensor, "n c"]:
        """Return the features of one view of each image, in float32.

        Raises:
            DataError: If a record is missing or damaged.
        """
        rows, is_valid, _ = self.store.read(images * self.view_epochs + views // 2)
        if not is_valid.all():
            raise DataError(
                f"{self.folder}: {int((~is_valid).sum())} records are damaged; resume the "
                "run, which computes them again"
            )
        pairs = torch.from_numpy(rows).view(torch.float16).view(len(images), 2, self.channels)
        return pairs[torch.arange(len(images)), torch.from_numpy(views % 2)].float()

    def complete_images(self) -> Images:
        """Return the images of which all views are complete, in ascending order."""
        is_valid = np.concatenate([self.is_valid(slots) for slots in self._slots(_ROWS_PER_READ)])
        return np.flatnonzero(is_valid.reshape(self.num_images, self.view_epochs).all(1))

    def is_valid(self, slots: Slots) -> Bool[np.ndarray, " n"]:
        """Return which records are complete and undamaged."""
        return self.store.read(slots)[1]

    def missing_batches(self) -> list[Slots]:
        """Return the batches of records of which any is missing or damaged."""
        return [slots for slots in self._slots(PAIRS_PER_BATCH) if not self.is_valid(slots).all()]

    def _slots(self, count: int) -> Iterator[Slots]:
        total = len(self.store)
        for start in range(0, total, count):
            yield np.arange(start, min(start + count, total))


def record_bytes(channels: int) -> int:
    """Return the bytes of a record: two vectors in float16."""
    return 2 * channels * np.dtype(np.float16).itemsize


class StoppedFeatures(StoppedRun):
    """Raised after a signal has stopped the computation; the complete batches are saved."""

    def message(self, remedy: str) -> str:
        """Describe what is saved, and how ``remedy`` continues."""
        name = signal.Signals(self.signum).name
        saved = f"the features of {self.step} pairs of views are saved"
        return f"stopped by {name}; {saved}; continue with {remedy}"


def compute_features(
    features: PooledFeatures,
    teacher: Teacher,
    source: ImageSource,
    views: TwoViewTransform,
    *,
    num_workers: int,
    accelerator: Accelerator,
    run_folder: Path,
) -> list[str]:
    """Compute the records that are missing.

    Args:
        features: The records.
        teacher: The teacher, whose feature maps are averaged.
        source: The images.
        views: Transform of each image to the views of a pair.
        num_workers: Processes that read images; 0 for none.
        accelerator: The run's Accelerator, for mixed precision.
        run_folder: Folder of the run, for the message after a stop signal.

    Returns:
        The images that cannot be read, with the reasons.

    Raises:
        CheckpointError: If the disk is full or cannot be written.
        StoppedRun: After a stop signal; complete batches are saved.
        TeacherError: If a feature is not finite in float16.
    """
    missing = features.missing_batches()
    height, width = height_width(views.image_size)
    batches = read_batches(
        partial(_read_pair, source, views, features.view_epochs),
        (batch.tolist() for batch in missing),
        num_workers=num_workers,
        batch_bytes=2 * 3 * height * width * PAIRS_PER_BATCH,
        collate=_collate,
    )
    broken: dict[str, None] = {}
    with StopRequest() as stop:
        for batch in progress(batches, "features", total=len(missing)):
            broken |= dict.fromkeys(batch.broken)
            if len(batch.slots):
                with accelerator.autocast():
                    rows = _encode(teacher, batch.views)
                _write(features, batch.slots, rows)
            if stop.signum:
                raise StoppedFeatures(stop.signum, run_folder, step=features.store.num_complete)
    return list(broken)


def _write(features: PooledFeatures, slots: Slots, rows: Rows) -> None:
    try:
        features.store.write(slots, rows, replace=np.ones(len(slots), bool))
    except OSError as error:
        raise CheckpointError(
            f"cannot write {features.folder} ({error.strerror or error}); free some space, then "
            "resume the run"
        ) from error


def _encode(teacher: Teacher, views: UInt8[Tensor, "n 2 3 height width"]) -> Rows:
    images = views.to(teacher.mean.device).flatten(0, 1) / 255
    images = images.contiguous(memory_format=torch.channels_last)
    pooled = teacher(images).float().mean((2, 3)).half()
    if not torch.isfinite(pooled).all():
        raise TeacherError(
            f"{teacher.facts.source}: its pooled features are not finite in float16, expected "
            "values below 65504; use another teacher"
        )
    return pooled.unflatten(0, (-1, 2)).flatten(1).cpu().contiguous().view(torch.uint8).numpy()


class _Pair(NamedTuple):
    slot: int
    views: UInt8[Tensor, "2 3 height width"] | None
    """None if the image is broken."""
    broken: str


class _Views(NamedTuple):
    slots: Slots
    views: UInt8[Tensor, "n 2 3 height width"]
    broken: list[str]


def _read_pair(source: ImageSource, views: TwoViewTransform, view_epochs: int, slot: int) -> _Pair:
    index, epoch = divmod(slot, view_epochs)
    try:
        decoded = source.read(index, DecodeForViews(views, epoch, index))
    except BrokenImageError as error:
        return _Pair(slot, None, str(error))
    return _Pair(slot, views.render(*decoded), "")


def _collate(pairs: list[_Pair]) -> _Views:
    readable = [pair for pair in pairs if pair.views is not None]
    views = [pair.views[None] for pair in readable if pair.views is not None]
    return _Views(
        np.array([pair.slot for pair in readable], np.int64),
        concatenate_views(views) if views else torch.empty(0, 2, 3, 1, 1, dtype=torch.uint8),
        [pair.broken for pair in pairs if pair.views is None],
    )
