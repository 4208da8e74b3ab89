"""What a process holds once, and each student needs as its own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor


class _State(NamedTuple):
    cpu: Tensor
    """Random state."""
    cuda: Tensor | None
    """Random state of the current GPU."""
    scaler: Any
    """Gradient scaler of float16."""
    trackers: list[Any]


class OwnState:
    """Random states, gradient scaler and trackers of one student, in use only during its turns.

    A student's results therefore do not depend on the others. It starts with the random states at
    its creation.

    Args:
        accelerator: The run's Accelerator.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._state = self._read()._replace(scaler=copy.deepcopy(accelerator.scaler), trackers=[])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Use it in the block, and restore what was there before."""
        before = self._read()
        self._write(self._state)
        try:
            yield
        finally:
            self._state = self._read()
            self._write(before)

    def _read(self) -> _State:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        accelerator = self._accelerator
        return _State(torch.get_rng_state(), cuda, accelerator.scaler, accelerator.trackers)

    def _write(self, state: _State) -> None:
        torch.set_rng_state(state.cpu)
        if state.cuda is not None:
            torch.cuda.set_rng_state(state.cuda)
        self._accelerator.scaler = state.scaler
        self._accelerator.trackers = state.trackers
