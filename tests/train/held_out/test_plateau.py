import itertools
import math

import pytest

from pcd_hub.train.held_out.plateau import (
    EarlyEnd,
    decay_steps,
    measure_interval,
    plateau,
)


def test_the_learning_rate_decays_to_0_over_a_tenth_of_the_steps_done():
    end = EarlyEnd(1000)
    assert (end.total_steps, end.factor(999), end.scheduled_step(999)) == (1000, 1.0, 999)
    assert end.begin(400)
    assert end.total_steps == 440
    assert [end.scheduled_step(step) for step in (399, 400, 439)] == [399, 400, 400]
    factors = [end.factor(step) for step in range(399, 440)]
    assert factors[:2] == [1.0, 1.0]
    assert factors[21] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(factors[1:]))
    assert 0 < factors[-1] < 0.01


def test_a_run_that_ends_as_early_by_itself_is_not_shortened():
    for done in (910, 950, 1000):
        end = EarlyEnd(1000)
        assert not end.begin(done)
        assert end.total_steps == 1000
    assert EarlyEnd(1000).begin(908)


def test_only_the_first_plateau_counts():
    end = EarlyEnd(1000)
    assert end.begin(100)
    assert not end.begin(105)
    assert end.total_steps == 110


def test_an_early_end_survives_a_checkpoint_but_not_another_length():
    end = EarlyEnd(1000)
    end.begin(300)
    same, longer = EarlyEnd(1000), EarlyEnd(2000)
    for other in (same, longer):
        other.load_state_dict(end.state_dict())
    assert same.total_steps == 330
    assert longer.total_steps == 2000


def test_a_decay_has_at_least_one_step():
    assert [decay_steps(done) for done in (1, 10, 11, 500)] == [1, 1, 2, 50]


@pytest.mark.parametrize(
    ("total_steps", "batch", "images", "expected"),
    [
        (100_000, 1024, 128, 5_000),  # 20 measurements
        (475, 32, 128, 34),  # 14: a forward pass for each eighth training image
        (6, 8, 6, 2),  # at least 4, as far as there are steps
        (1, 8, 6, 1),
    ],
)
def test_measurements_take_a_fiftieth_of_the_time(total_steps, batch, images, expected):
    assert measure_interval(total_steps, batch, images) == expected


def test_measurements_may_have_another_least_and_largest_number():
    limits = {"fewest": 2, "most": 10}
    assert measure_interval(100_000, 1024, 128, **limits) == 10_000
    assert measure_interval(100, 16, 187, **limits) == 50


PHOTOGRAPHS = [
    *(5.185, 5.156, 5.114, 5.067, 5.013, 4.972, 4.909, 4.865, 4.791, 4.762, 4.665, 4.617, 4.513),
    *(4.488, 4.394, 4.414, 4.327, 4.327, 4.283, 4.239, 4.218, 4.194, 4.162, 4.152, 4.149, 4.134),
    *(4.122, 4.123, 4.115),
]
"""Held-out loss of a run of 300 steps on 17,781 photographs, every 10 steps after the warm-up."""


def disturbed(losses, size, seed):
    """Add repeatable noise of at most ``size``."""
    return [loss + size * math.sin(12.9898 * (n + 40 * seed) ** 2) for n, loss in enumerate(losses)]


def first_plateau(losses):
    """Return the number of measurements after which a plateau is found; None for never."""
    found = (n for n in range(1, len(losses) + 1) if plateau(losses[:n]))
    return next(found, None)


def test_a_real_run_that_improves_to_its_end_is_not_stopped():
    assert first_plateau(PHOTOGRAPHS) is None
    assert first_plateau(PHOTOGRAPHS[::2]) is None


@pytest.mark.parametrize("seed", range(10))
def test_noise_does_not_stop_a_real_run_before_its_last_fifth(seed):
    """Up to a thirtieth of all improvement; the measured noise is about half of that."""
    found = first_plateau(disturbed(PHOTOGRAPHS, 0.035, seed))
    assert found is None or found > 0.8 * len(PHOTOGRAPHS)


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_stays_flat_or_overfits_is_stopped(seed):
    flat = PHOTOGRAPHS + [4.115] * 9
    rising = PHOTOGRAPHS[:15] + [4.4 + 0.03 * n for n in range(12)]
    assert len(PHOTOGRAPHS) < (first_plateau(flat) or 0) <= len(PHOTOGRAPHS) + 4
    assert 15 < (first_plateau(rising) or 0) <= 15 + 6
    assert first_plateau(disturbed(flat, 0.01, seed))
    assert first_plateau(disturbed(rising, 0.035, seed))


def test_few_measurements_are_never_a_plateau():
    assert not plateau([])
    assert not plateau([1.0] * 7)
    assert plateau([1.0, *[0.5] * 7])
