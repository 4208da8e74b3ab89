"""The measured duration of a step, with a clock that steps and loader advance."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pcd_hub.errors import ConfigError
from pcd_hub.train.own_images import timing


class Machine:
    """A step and a loader that take stated times."""

    def __init__(self, *, step: float, load: float, ahead: int = 0) -> None:
        self.now = 0.0
        self.steps: list[int] = []
        self.seconds, self.load, self.ahead = step, load, ahead

    def batches(self) -> Any:
        for number in itertools.count():
            # After the measurement of the loader, some batches are prepared ahead.
            self.now += 0.0 if self.steps and number < self.ahead else self.load
            yield number

    def step(self, batches: list[Any]) -> None:
        self.now += self.seconds
        self.steps.append(len(batches))

    def measure(self, patch: pytest.MonkeyPatch, **options: Any) -> float:
        patch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))
        accelerator: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
        options = {"accumulation_steps": 1, "num_workers": 1, **options}
        return timing.measure_step(self.step, self.batches(), accelerator=accelerator, **options)


def test_a_step_takes_its_computation_and_the_wait_for_data(monkeypatch):
    machine = Machine(step=1.0, load=0.25)
    assert machine.measure(monkeypatch) == 1.25
    assert len(machine.steps) == timing.WARM_UP_STEPS + 6, "8 s"
    machine = Machine(step=1.0, load=0.25)
    assert machine.measure(monkeypatch, accumulation_steps=2) == 1.5
    assert set(machine.steps) == {2}


def test_slow_and_fast_steps_are_measured_a_few_times(monkeypatch):
    slow, fast = Machine(step=100.0, load=0.0), Machine(step=0.001, load=0.0)
    assert slow.measure(monkeypatch) == 100.0
    assert len(slow.steps) == timing.WARM_UP_STEPS + timing.MIN_STEPS
    assert fast.measure(monkeypatch) == pytest.approx(0.001)
    assert len(fast.steps) == timing.WARM_UP_STEPS + timing.MAX_STEPS


def test_batches_prepared_ahead_do_not_hide_a_slow_loader(monkeypatch):
    machine = Machine(step=0.5, load=2.0, ahead=1000)
    assert machine.measure(monkeypatch, num_workers=3) == 2.0
    machine = Machine(step=0.5, load=2.0, ahead=1000)
    assert machine.measure(monkeypatch, accumulation_steps=2) == 4.0


def test_the_slowest_process_counts(monkeypatch):
    monkeypatch.setattr(timing, "gather_object", lambda own: [*own, 7.0])
    assert Machine(step=1.0, load=0.0).measure(monkeypatch) == 7.0


def test_too_little_memory_is_one_line(monkeypatch):
    machine = Machine(step=1.0, load=0.0)

    def step(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(machine, "step", step)
    with pytest.raises(ConfigError, match="needs more memory than the GPU has; lower"):
        machine.measure(monkeypatch)
