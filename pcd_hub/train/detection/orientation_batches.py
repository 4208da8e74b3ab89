"""Training batches whose images are all wide or all tall, so that little of a batch is padding."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from pcd_hub.data.batch_plan import BatchPlan


class OrientationSampler(Sampler[list[tuple[int, int]]]):
    """(epoch, index) pairs of each forward pass of this process; a step has one orientation.

    As detectron2 groups, by width > height, but whole steps instead of each GPU's share, so that
    the images of a step do not depend on the number of processes. The two kinds of step alternate
    as evenly as their shares of the images allow; each kind goes through its own images, freshly
    permuted for every pass through them, without a remainder. So everything is a pure function of
    seed and step.

    Args:
        is_wide: Of each image, whether it is wider than tall.
        plan: How the global batch is shared. Process r takes the r-th contiguous part.
    """

    def __init__(self, is_wide: Sequence[bool], plan: BatchPlan) -> None:
        self._groups = [
            [index for index, wide in enumerate(is_wide) if wide == kind] for kind in (False, True)
        ]
        self._plan = plan

    def __len__(self) -> int:
        return (self._plan.total_steps - self._plan.start_step) * self._plan.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan = self._plan
        for step in range(plan.start_step, plan.total_steps):
            pairs = np.asarray(self._global_batch(step))
            parts = pairs.reshape(plan.accumulation_steps, plan.world_size, plan.batch_size, 2)
            for part in parts[:, plan.rank].tolist():
                yield [(epoch, index) for epoch, index in part]

    def _global_batch(self, step: int) -> list[tuple[int, int]]:
        wide, size = len(self._groups[1]), self._plan.global_batch_size
        images = wide + len(self._groups[0])
        # How many steps were wide before this one and before the next, rounded.
        before, after = ((2 * each * wide + images) // (2 * images) for each in (step, step + 1))
        kind = after - before
        group, number = self._groups[kind], before if kind else step - before
        pairs: list[tuple[int, int]] = []
        for position in range(number * size, (number + 1) * size):
            epoch, place = divmod(position, len(group))
            order = _permutation(self._plan.seed, kind, epoch, len(group))
            pairs.append((epoch, group[order[place]]))
        return pairs


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, kind: int, epoch: int, count: int) -> np.ndarray[tuple[int], np.dtype]:
    return np.random.default_rng((seed, kind, epoch)).permutation(count)
