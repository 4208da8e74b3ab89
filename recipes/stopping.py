"""SIGTERM, SIGINT and SLURM's SIGUSR1: finish the step, save, say how to go on."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Self

from accelerate import Accelerator
from accelerate.utils import gather_object

_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]


class StoppedRun(Exception):  # noqa: N818 - no error
    """A run that was asked to stop, and has saved; ``exit_code`` is what the shell expects."""

    def __init__(self, signum: int, step: int, folder: Path) -> None:
        resume = f"--run.resume --run.output-dir {folder}"
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, which is saved; "
            f"go on with the same command and {resume}"
        )
        self.exit_code = 128 + signum


class StopRequest:
    """From ``with`` on, the first signal only asks to stop; a second SIGINT is KeyboardInterrupt.

    Args:
        accelerator: A request to one process is one to all.
        every: Steps between two times that several processes ask each other.
    """

    def __init__(self, accelerator: Accelerator, *, every: int) -> None:
        self._accelerator = accelerator
        self._every = every
        self._before: dict[int, Any] = {}
        self._signum = 0
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._note) for signum in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._pid:  # a loader's process: it is needed until the step is done
            return
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._signum = signum
        print(f"\n{signal.Signals(signum).name}: finishing the step", file=sys.stderr, flush=True)

    def signum(self, step: int) -> int:
        """The signal that any process got, 0 for none; called by all of them after ``step``."""
        if self._accelerator.num_processes == 1:
            return self._signum
        return max(gather_object([self._signum])) if (step + 1) % self._every == 0 else 0
