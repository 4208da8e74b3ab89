"""Training batches of one orientation, all wide or all tall, to reduce padding."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from pcd_hub.data.batch_plan import BatchPlan


class OrientationSampler(Sampler[list[tuple[int, int]]]):
    """Sampler of (epoch, index) pairs for each forward pass; each step has one orientation.

    detectron2 groups by width > height too, but per GPU. Grouping whole steps makes the images of a
    step independent of the number of processes. The two kinds of step are interleaved in proportion
    to their numbers of images. Each kind cycles through its own images, permuted for every cycle,
    without dropping a remainder. The pairs are a pure function of seed and step.

    Args:
        is_wide: For each image, whether it is wider than tall.
        plan: How the global batch is split. Process r takes the r-th contiguous part.
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
        # Numbers of wide steps before this step and before the next one, rounded.
        before, after = ((2 * each * wide + images) // (2 * images) for each in (step, step + 1))
        kind = after - before
        group, number = self._groups[kind], before if kind else step - before
        pairs: list[tuple[int, int]] = []
        for position in range(number * size, (number + 1) * size):
            epoch, offset = divmod(position, len(group))
            order = _permutation(self._plan.seed, kind, epoch, len(group))
            pairs.append((epoch, group[order[offset]]))
        return pairs


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, kind: int, epoch: int, count: int) -> np.ndarray[tuple[int], np.dtype]:
    return np.random.default_rng((seed, kind, epoch)).permutation(count)
