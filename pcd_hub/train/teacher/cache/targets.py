"""The teacher's feature maps of a batch: from the cache if they are there, else computed."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pcd_hub.data.loader import Batch
from pcd_hub.files.strict_json import printable
from pcd_hub.train.teacher.cache.records import RecordFormat
from pcd_hub.train.teacher.cache.store import RecordStore, Rows, Slots

log = logging.getLogger("pcd_hub")

_MAX_NAMED = 5
"""Damaged records that are named in one warning."""


class Targets(Protocol):
    """A source of the teacher's feature maps."""

    def __call__(
        self, teacher: nn.Module, batch: Batch, images: Float[Tensor, "two_b bands h w"]
    ) -> Float[Tensor, "two_b c h w"]:
        """Return the teacher's feature maps of all first views, then of all second views."""
        ...


class FromTeacher:
    """Ask the teacher for every view."""

    def __call__(
        self, teacher: nn.Module, batch: Batch, images: Float[Tensor, "two_b bands h w"]
    ) -> Float[Tensor, "two_b c h w"]:
        """Return the teacher's feature maps; see :class:`Targets`."""
        del batch
        return teacher(images)


class BySize:
    """One source of feature maps for each size of the views.

    Args:
        sources: The sources by height and width of the views.
    """

    def __init__(self, sources: Mapping[tuple[int, int], Targets]) -> None:
        self._sources = dict(sources)

    def __call__(
        self, teacher: nn.Module, batch: Batch, images: Float[Tensor, "two_b bands h w"]
    ) -> Float[Tensor, "two_b c h w"]:
        """Return the teacher's feature maps; see :class:`Targets`."""
        height, width = images.shape[2:]
        return self._sources[height, width](teacher, batch, images)


class Repeated:
    """Repeat the feature maps of the first batch, to measure a step without the teacher."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, torch.Size], Tensor] = {}

    def __call__(
        self, teacher: nn.Module, batch: Batch, images: Float[Tensor, "two_b bands h w"]
    ) -> Float[Tensor, "two_b c h w"]:
        """Return the teacher's feature maps of another batch; see :class:`Targets`."""
        del batch
        key = id(teacher), images.shape
        if key not in self._maps:
            self._maps[key] = teacher(images).float()
        return self._maps[key]


@dataclass
class FromCache:
    """Read records; let the teacher compute those that are missing, damaged or of other views.

    The values are always those that a record keeps, so that a run does not depend on which records
    existed when it started.
    """

    store: RecordStore
    record_format: RecordFormat
    _: KW_ONLY
    view_epochs: int
    name_of: Callable[[int], str] = str
    """Name of an image by its index, for warnings."""
    whole_batches: bool = False
    """Compute the whole batch if a record of it is missing, because a compiled teacher would be
    compiled again for every other size."""
    num_computed: int = 0
    """Images for which the teacher was asked."""
    _writes: bool = True

    def __call__(
        self, teacher: nn.Module, batch: Batch, images: Float[Tensor, "two_b bands h w"]
    ) -> Float[Tensor, "two_b c h w"]:
        """Return the teacher's feature maps; see :class:`Targets`."""
        slots = record_numbers(batch, self.view_epochs)
        rows, is_valid, is_damaged = self.store.read(slots)
        is_changed = is_valid & ~self.record_format.shows(rows, batch.views)
        self._warn("damaged", batch, is_damaged)
        self._warn("of another view (have the images changed?)", batch, is_changed)
        is_missing = ~is_valid | is_changed
        if is_missing.any():
            self._compute(teacher, batch, images, rows, is_missing)
            replace = (is_damaged | is_changed)[is_missing]
            self._write(slots[is_missing], rows[is_missing], replace)
        return self.record_format.decode(rows, images.device)

    def _compute(
        self,
        teacher: nn.Module,
        batch: Batch,
        images: Tensor,
        rows: Rows,
        is_missing: Bool[np.ndarray, " b"],
    ) -> None:
        """Fill the rows that are missing."""
        places = np.arange(len(rows)) if self.whole_batches else np.flatnonzero(is_missing)
        chosen = torch.from_numpy(places)
        both = torch.cat([chosen, chosen + len(rows)]).to(images.device)
        everything = len(places) == len(rows)
        maps = teacher(images if everything else images[both])
        made = self.record_format.encode(maps, batch.views[chosen])
        rows[is_missing] = made[is_missing[places]]
        self.num_computed += len(places)

    def _write(self, slots: Slots, rows: Rows, replace: Bool[np.ndarray, " n"]) -> None:
        """Write records; the run continues without if that fails."""
        if not self._writes:
            return
        try:
            self.store.write(slots, rows, replace=replace)
        except OSError as error:  # also if the lock is not free in time
            self._writes = False
            log.warning(
                "the teacher's cache can no longer be written (%s); the run continues, and the "
                "teacher computes what is missing",
                error.strerror or error,
            )

    def _warn(self, state: str, batch: Batch, which: Bool[np.ndarray, " b"]) -> None:
        if which.any():
            indices = batch.indices[torch.from_numpy(which)].tolist()
            more = f" and {len(indices) - _MAX_NAMED} more" if len(indices) > _MAX_NAMED else ""
            names = ", ".join(map(self.name_of, indices[:_MAX_NAMED]))
            log.warning(
                "the teacher's cache: the records of %s%s are %s; they are made again",
                *(printable(names), more, state),
            )


def record_numbers(batch: Batch, view_epochs: int) -> Slots:
    """Return the number of each image's record."""
    return (batch.indices * view_epochs + batch.epochs % view_epochs).numpy()
