import itertools
import math

import pytest

from pcd_hub.train.held_out.plateau import (
    EarlyEnd,
    decay_steps,
    measure_interval,
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


def noise(number, size):
    """Return a repeatable disturbance from -size to size."""
    return size * math.sin(12.9898 * number**2)
