from collections import Counter

import pytest

from pcd_hub.data.loader import BatchPlan
from pcd_hub.train.detection.orientation_batches import OrientationSampler


def steps(wide: int, tall: int, size: int, count: int, **plan) -> list[list[tuple[int, int]]]:
    """The first ``wide`` images are wide."""
    plan = BatchPlan(global_batch_size=size, **{"total_steps": count, "seed": 3} | plan)
    sampler = OrientationSampler([True] * wide + [False] * tall, plan)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


@pytest.mark.parametrize(
    ("wide", "tall", "size"), [(40, 24, 4), (5, 3, 4), (61, 3, 16), (0, 8, 2), (8, 0, 2)]
)
def test_a_step_has_one_orientation_and_every_image_is_seen_as_often(wide, tall, size):
    images = wide + tall
    found = steps(wide, tall, size, 12 * images)
    for number, batch in enumerate(found):
        assert len(batch) == size
        assert len({index < wide for _, index in batch}) == 1, number
    times = Counter(index for batch in found for _, index in batch)
    # 12 x size passes through all images; a step at either end may be missing.
    assert set(times) == set(range(images))
    assert all(abs(count - 12 * size) <= size for count in times.values())
    for kind in (True, False):  # each pass through a group has each of its images once
        own = Counter(pair for batch in found for pair in batch if (pair[1] < wide) == kind)
        assert set(own.values()) <= {1}


def test_the_kinds_of_step_alternate_as_their_shares_allow():
    kinds = [batch[0][1] < 30 for batch in steps(30, 10, 2, 40)]
    assert sum(kinds) == 30
    assert all(sum(kinds[start : start + 4]) == 3 for start in range(37))
    assert [batch[0][1] for batch in steps(7, 1, 1, 8)].index(7) == 4  # in the middle, not first


def test_steps_depend_on_seed_and_number_alone_however_shared():
    whole = steps(40, 24, 4, 30)
    assert steps(40, 24, 4, 30, start_step=17) == whole[17:]
    assert steps(40, 24, 4, 30, seed=4) != whole
    passes = [
        [index for batch in steps(8, 0, 4, 4) for _, index in batch][n : n + 8] for n in (0, 8)
    ]
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(8))
    shared = [steps(40, 24, 4, 30, rank=rank, world_size=2) for rank in range(2)]
    assert [first + second for first, second in zip(*shared, strict=True)] == whole
    halves = steps(40, 24, 4, 30, accumulation_steps=2)
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == whole
