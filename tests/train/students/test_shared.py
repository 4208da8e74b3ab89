"""One reader of batches for students that start at different steps."""

from types import SimpleNamespace
from typing import Any

import torch

import pcd_hub
from pcd_hub.data.loader import BatchPlan
from pcd_hub.train.students.shared import SharedBatches, SharedStop


class Loader:
    """Batches that are numbers; it remembers the steps at which it was opened."""

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.read: list[int] = []

    def open(self, plan: BatchPlan, states: dict[int, Any]) -> Any:
        self.opened.append(plan.start_step)
        for number in range(plan.start_step * plan.accumulation_steps, 99):
            self.read.append(number)
            yield number


def students(shared: SharedBatches, loader: Loader, *starts: int) -> list[Any]:
    plans = [
        BatchPlan(global_batch_size=4, total_steps=40, accumulation_steps=2, start_step=start)
        for start in starts
    ]
    return [shared.open(loader.open, plan, {}) for plan in plans]


def step(shared: SharedBatches, due: list[Any]) -> list[list[int]]:
    taken = [[next(each), next(each)] for each in due]
    shared.clear()
    return taken


def test_every_batch_is_read_once():
    shared, loader = SharedBatches(), Loader()
    both = students(shared, loader, 0, 0)
    assert step(shared, both) == [[0, 1], [0, 1]]
    assert step(shared, both) == [[2, 3], [2, 3]]
    assert (loader.opened, loader.read) == ([0], [0, 1, 2, 3])


def test_a_student_joins_the_others_at_its_step():
    shared, loader = SharedBatches(), Loader()
    late, early, finished = students(shared, loader, 2, 1, 0)
    assert step(shared, [early]) == [[2, 3]]
    assert step(shared, [late, early]) == [[4, 5], [4, 5]]
    assert loader.opened == [1], "not for a student that takes no step"
    del finished


def test_steps_that_no_student_takes_are_not_read():
    shared, loader = SharedBatches(), Loader()
    early, late = students(shared, loader, 1, 20)
    assert step(shared, [early]) == [[2, 3]]
    assert step(shared, [late]) == [[40, 41]]
    assert loader.opened == [1, 20]
    assert loader.read == [2, 3, 40, 41]


def test_all_students_see_a_signal_in_the_same_step():
    stop: Any = SharedStop()
    stop.request = SimpleNamespace(signum=0)
    assert stop.signum == 0
    stop.request.signum = 15
    assert stop.signum == 0, "the next student of the step"
    stop.clear()
    assert stop.signum == 15


def test_other_sizes_end_the_use_of_shared_maps():
    teacher = pcd_hub.load_teacher("quickstart", image_size=32)
    images = torch.rand(2, 3, 32, 32)
    teacher.use_network_of(teacher, lambda images, compute: 2 * compute(images))
    doubled = teacher(images)
    teacher.set_sizes(32)
    torch.testing.assert_close(doubled, 2 * teacher(images))
