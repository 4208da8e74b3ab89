from dataclasses import replace

import pytest

from pcd_hub.train.teacher.cache.estimate import (
    CacheSize,
    StepTimes,
    as_gb,
    average_step,
    choose,
    saving,
    write_speed,
)

SIZE = CacheSize(num_images=100_000, record_bytes=23_000, limit_bytes=20e9, free_bytes=100e9)
SLOW = StepTimes(teacher=3.0, cached=1.0)


def test_the_size_is_the_images_times_their_views():
    assert SIZE.num_bytes(3) == 100_000 * 3 * 23_004
    assert SIZE.describe(3) == (
        "100,000 images x 3 pairs of views x 23.0 KB = 6.90 GB, 100.00 GB free"
    )
    assert SIZE.most_view_epochs == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"limit_bytes": 2e9}, "needs 2.30 GB, --teacher.cache-gb is 2"),
        ({"free_bytes": 2.5e9}, "needs 2.30 GB more, 2.50 GB are free, of which it may take 80%"),
        ({"free_bytes": 2.5e9, "existing_bytes": 1e9}, ""),
    ],
)
def test_a_cache_without_room_is_too_large(changes, reason):
    assert replace(SIZE, **changes).too_large(1) == reason


@pytest.mark.parametrize(
    ("times", "epochs", "size", "view_epochs", "reason"),
    [
        (SLOW, 100, SIZE, 4, "saves 64% of the time, 9.20 GB"),
        (SLOW, 8, SIZE, 2, "saves 50% of the time, 4.60 GB"),
        (SLOW, 2, SIZE, 1, "saves 33% of the time, 2.30 GB"),
        (SLOW, 1.9, SIZE, 0, "1.9 passes over the images are too few"),
        (SLOW, 100, replace(SIZE, limit_bytes=7e9), 3, "saves 65% of the time, 6.90 GB"),
        (
            SLOW,
            100,
            replace(SIZE, limit_bytes=1e9),
            0,
            "needs 2.30 GB, --teacher.cache-gb is 1",
        ),
        (
            StepTimes(teacher=1.04, cached=1.0),
            100,
            SIZE,
            0,
            "it would save 4% of the time: the teacher takes 4% of a step, writing a record 0 s",
        ),
    ],
)
def test_a_cache_is_made_where_it_pays(times, epochs, size, view_epochs, reason):
    found = choose(size, times, epochs=epochs, writing_seconds=0)
    assert (found.view_epochs, found.reason) == (view_epochs, reason)


def test_a_disk_that_is_slower_than_the_teacher_is_not_written():
    found = choose(SIZE, SLOW, epochs=8, writing_seconds=20.0)
    assert found.view_epochs == 0
    assert "it would save 0% of the time" in found.reason


def test_requested_views_are_not_changed():
    assert choose(SIZE, SLOW, epochs=100, writing_seconds=0, requested=7).view_epochs == 7


def test_the_saving_is_that_of_the_epochs_after_the_first():
    assert saving(SLOW, 1, epochs=4) == pytest.approx(0.75 * 2 / 3)
    assert saving(SLOW, 4, epochs=4) == 0
    assert saving(SLOW, 9, epochs=4, writing_seconds=0.3) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("filling", "seconds", "steps"),
    [(0, 100, 100), (10, 100, 10 + 70), (50, 100, 100 / 3)],
)
def test_the_average_step_gives_the_steps_of_a_duration(filling, seconds, steps):
    average = average_step(SLOW, filling_steps=filling, seconds=seconds)
    assert seconds / average == pytest.approx(steps)


def test_the_speed_of_the_disk_is_measured_without_leaving_a_file(tmp_path):
    assert write_speed(tmp_path / "new") > 1e5
    assert [*(tmp_path / "new").iterdir()] == []


def test_sizes_are_readable():
    assert [as_gb(size) for size in (1.234e9, 45.4e6)] == ["1.23 GB", "45 MB"]
