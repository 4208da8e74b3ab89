"""The paired comparison, by hand."""

import math

import pytest

from pcd_hub.train.lab.paired import paired_difference, t_975


def test_a_difference_as_large_as_its_spread_is_within_noise():
    found = paired_difference({0: 11.0, 1: 13.0, 2: 12.0}, {0: 10.0, 1: 10.0, 2: 12.0})
    assert found.mean == pytest.approx(4 / 3)  # differences 1, 3, 0
    assert found.std == pytest.approx(math.sqrt(7 / 3))
    assert found.half_width == pytest.approx(4.303 * math.sqrt(7 / 3) / math.sqrt(3))  # 3.79
    assert found.verdict == "within noise"


@pytest.mark.parametrize(("sign", "verdict"), [(1, "higher"), (-1, "lower")])
def test_a_difference_beyond_the_interval_is_no_noise(sign, verdict):
    row = {seed: 20 + sign * change for seed, change in enumerate((3.9, 4.0, 4.1))}
    found = paired_difference(row, dict.fromkeys(range(3), 20.0))
    assert found.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert found.verdict == verdict


def test_pairs_remove_what_the_seeds_have_in_common():
    baseline = {0: 10.0, 1: 20.0, 2: 30.0}
    found = paired_difference(
        {seed: value + 1 + seed / 100 for seed, value in baseline.items()}, baseline
    )
    assert found.verdict == "higher"


def test_only_common_seeds_are_paired_and_one_is_not_judged():
    found = paired_difference({0: 1.0, 5: 9.0}, {5: 4.0, 6: 7.0})
    assert (found.seeds, found.mean, found.std, found.half_width) == ((5,), 5.0, None, None)
    assert found.verdict == "one seed, not judged"
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_two_seeds_need_a_very_clear_difference():
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}).verdict == "within noise"
    assert t_975(1) == 12.706
    assert t_975(30) == t_975(1000) == 2.042
