import pytest

from pcd_hub.method.schedule import momentum_to_one, scaled_lr, warmup_cosine


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 10), (1, 2), (10, 100), (99, 100)])
def test_no_step_has_learning_rate_zero_and_the_peak_is_reached(warmup, total):
    factors = [warmup_cosine(step, warmup_steps=warmup, total_steps=total) for step in range(total)]
    assert min(factors) > 0
    assert factors[warmup] == max(factors) == 1.0


def test_learning_rate_rises_then_falls():
    factors = [warmup_cosine(step, warmup_steps=10, total_steps=100) for step in range(100)]
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 1e-3


@pytest.mark.parametrize(
    ("step", "warmup", "total"), [(-1, 0, 5), (5, 0, 5), (0, 5, 5), (0, -1, 5)]
)
def test_steps_outside_the_run_are_rejected(step, warmup, total):
    with pytest.raises(ValueError, match=r"step=|warmup_steps="):
        warmup_cosine(step, warmup_steps=warmup, total_steps=total)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_learning_rate_does_not_depend_on_the_number_of_processes(processes):
    """The released code divides the per-process batch as integers, which gives lr 0.0 on 8 GPUs."""
    per_process = 1024 // processes
    assert scaled_lr(1.0, global_batch_size=per_process * processes) == 4.0


def test_small_batches_do_not_round_to_zero():
    assert scaled_lr(1.0, global_batch_size=128) == 0.5


def test_momentum_rises_to_one():
    assert momentum_to_one(0, start=0.99, total_steps=10) == pytest.approx(0.99)
    assert momentum_to_one(10, start=0.99, total_steps=10) == 1.0
