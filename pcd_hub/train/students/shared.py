"""Computed once for all students of a run: batches, images, feature maps, stop signals."""

from collections.abc import Callable, Iterator
from typing import Any, Self

from torch import Tensor

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import Batch
from pcd_hub.data.resident.images import ResidentImages
from pcd_hub.train.signals import StopRequest

OpenBatches = Callable[[BatchPlan, dict[int, Any]], Iterator[Batch]]


class SharedStep:
    """The step that the students of a run take in turn, until :meth:`clear`."""

    def __init__(self) -> None:
        self.resident: ResidentImages | None = None
        """The images in the device's memory; None if they are read from their files."""
        self.batches = SharedBatches()
        self.images = SharedImages()
        self.maps: list[SharedMaps] = []
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


class SharedImages:
    """The images of a step's batches on the device."""

    def __init__(self) -> None:
        self._of_batches: list[tuple[Batch, Tensor]] = []

    def of(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """Return the images of a batch, which the first student computes."""
        for known, images in self._of_batches:
            if known is batch:
                return images
        self._of_batches.append((batch, compute(batch)))
        return self._of_batches[-1][1]

    def has(self, images: Tensor) -> bool:
        """Return whether these are the images of a batch of this step."""
        return any(images is known for _, known in self._of_batches)

    def clear(self) -> None:
        """Forget the images."""
        self._of_batches.clear()


class SharedMaps:
    """The feature maps of a step's images by one teacher network, before they are resampled.

    Args:
        images: The images of the step; the maps of others are not kept.
    """

    def __init__(self, images: SharedImages) -> None:
        self._images = images
        self._of_images: list[tuple[Tensor, Tensor]] = []

    def of(self, images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the feature map of images, which the first student's teacher computes."""
        if not self._images.has(images):
            return compute(images)
        for known, feature_map in self._of_images:
            if known is images:
                return feature_map
        self._of_images.append((images, compute(images)))
        return self._of_images[-1][1]

    def clear(self) -> None:
        """Forget the feature maps."""
        self._of_images.clear()


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
