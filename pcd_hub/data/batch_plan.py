"""The images of every batch, as a pure function of (seed, step).

A resumed run therefore needs no sampler state, and the images of a global batch do not depend on
the number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from pcd_hub.errors import DataError


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Division of each global batch between processes and accumulation steps.

    ``global_batch_size = world_size * accumulation_steps * batch_size``.
    """

    global_batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulation_steps: int = 1
    seed: int = 0
    start_step: int = 0
    """First optimizer step to prepare, for a resumed run."""
    total_steps: int

    def __post_init__(self) -> None:
        parts = self.world_size * self.accumulation_steps
        if self.global_batch_size < 1 or self.global_batch_size % parts:
            raise DataError(
                f"global batch size {self.global_batch_size}: expected a multiple of {parts} "
                f"({self.world_size} processes x {self.accumulation_steps} accumulation steps)"
            )

    @property
    def batch_size(self) -> int:
        """Number of images in one forward pass of one process."""
        return self.global_batch_size // (self.world_size * self.accumulation_steps)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Sample the (epoch, index) pairs of each forward pass of this process.

    Every epoch is a new permutation, divided into complete global batches; the remainder is
    dropped. The process of rank r takes the r-th contiguous part of each global batch, so gathering
    the parts in rank order restores it.
    """

    def __init__(self, num_images: int, plan: BatchPlan) -> None:
        if num_images < plan.global_batch_size:
            raise DataError(
                f"{num_images} images are fewer than one global batch of {plan.global_batch_size}; "
                "reduce --optim.global-batch-size or add images"
            )
        self._num_images = num_images
        self._plan = plan
        self.steps_per_epoch = num_images // plan.global_batch_size

    def __len__(self) -> int:
        return (self._plan.total_steps - self._plan.start_step) * self._plan.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan = self._plan
        order, order_epoch = np.empty(0, np.int64), -1
        for step in range(plan.start_step, plan.total_steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order = np.random.default_rng((plan.seed, epoch)).permutation(self._num_images)
                order_epoch = epoch
            global_batch = order[number * plan.global_batch_size :][: plan.global_batch_size]
            parts = global_batch.reshape(plan.accumulation_steps, plan.world_size, plan.batch_size)
            for part in parts[:, plan.rank]:
                yield [(epoch, int(index)) for index in part]
