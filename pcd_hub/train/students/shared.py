"""Computed once for all students of a run: batches, images, feature maps, stop signals."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

from torch import Tensor

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import Batch
from pcd_hub.data.resident.images import ResidentImages
from pcd_hub.train.signals import StopRequest

KeyT = TypeVar("KeyT")
OpenBatches = Callable[[BatchPlan, dict[int, Any]], Iterator[Batch]]


class SharedStep:
    """The step that the students of a run take in turn, until :meth:`clear`."""

    def __init__(self) -> None:
        self.resident: ResidentImages | None = None
        """The images in the device's memory; None if they are read from their files."""
        self.batches = SharedBatches()
        self.images: Computed[Batch] = Computed()
        self.maps: list[Computed[Tensor]] = []
        """Feature maps of each teacher network."""
        self.stop = SharedStop()

    def clear(self) -> None:
        """Forget the step; every student has taken it."""
        self.batches.clear()
        self.images.clear()
        for maps in self.maps:
            maps.clear()
        self.stop.clear()


class SharedBatches:
    """One reader of batches for all students.

    It starts at the first batch that a student asks for, and again if another starts further on.
    """

    def __init__(self) -> None:
        self._batches: Iterator[Batch] = iter(())
        self._next = -1
        self._read: dict[int, Batch] = {}

    def open(
        self, open_batches: OpenBatches, plan: BatchPlan, stream_states: dict[int, Any]
    ) -> Iterator[Batch]:
        """Yield a student's batches, starting at the plan's start step.

        Args:
            open_batches: Function that opens this process's batches; the same for all students.
            plan: Division of the global batch.
            stream_states: Positions in a stream, by loader process.
        """
        number = first = plan.start_step * plan.accumulation_steps
        while True:
            if number == first and number not in self._read and number != self._next:
                self._batches, self._next = open_batches(plan, stream_states), first
            if number not in self._read:
                batch = next(self._batches, None)
                if batch is None:
                    return
                self._read[number] = batch
                self._next += 1
            yield self._read[number]
            number += 1

    def clear(self) -> None:
        """Forget the batches that were read."""
        self._read.clear()


class Computed(Generic[KeyT]):
    """Tensors of the step by what the first student computed them from.

    Args:
        images: For feature maps: the images of the step; maps of others are not kept.
    """

    def __init__(self, images: "Computed[Batch] | None" = None) -> None:
        self._images = images
        self._known: list[tuple[KeyT, Tensor]] = []

    def of(self, key: KeyT, compute: Callable[[KeyT], Tensor]) -> Tensor:
        """Return the images of a batch, or the feature map of images."""
        if self._images is not None and not any(key is kept for _, kept in self._images._known):
            return compute(key)
        for known, computed in self._known:
            if known is key:
                return computed
        self._known.append((key, compute(key)))
        return self._known[-1][1]

    def clear(self) -> None:
        """Forget the tensors."""
        self._known.clear()


class SharedStop:
    """A stop request that all students see in the same step."""

    def __init__(self) -> None:
        self.request = StopRequest()
        """Receives the signals while it is open."""
        self._signum: int | None = None

    @property
    def signum(self) -> int:
        """The signal at the end of the first student's step; 0 for none."""
        if self._signum is None:
            self._signum = self.request.signum
        return self._signum

    def end_with(self, make: Callable[[], BaseException]) -> None:
        """Set the function that makes the exception for a second SIGINT."""
        self.request.end_with(make)

    def clear(self) -> None:
        """Look at the request again in the next step."""
        self._signum = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the signals to the request."""
