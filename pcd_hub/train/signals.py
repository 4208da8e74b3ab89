"""SIGTERM, SIGINT and SLURM's SIGUSR1: finish the step, save, say how to go on."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from accelerate import Accelerator

from pcd_hub.data.workers import STOP_SIGNALS


class StoppedRun(BaseException):
    """A run that was asked to stop, and has saved; ``exit_code`` is what the shell expects.

    No ``except Exception`` may take it for a failure: as KeyboardInterrupt it is no error.

    Args:
        signum: The signal.
        folder: Of the run.
        step: After which it stopped; None if the training is done and its result is not written.
    """

    def __init__(self, signum: int, folder: Path, *, step: int | None) -> None:
        done, rest = "the training", "write its result"
        if step is not None:
            done, rest = f"step {step}", "go on"
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after {done}, which is saved; "
            f"{rest} with the same command and --run.resume --run.output-dir {folder}"
        )
        self.exit_code = 128 + signum


def stopped_run(signum: int, step: int, folder: Path, accelerator: Accelerator) -> StoppedRun:
    """What to raise once the checkpoint is written; called by every process.

    A launcher ends all processes when the first one exits, so they wait for the one that writes.
    """
    accelerator.wait_for_everyone()
    return StoppedRun(signum, folder, step=step)


@contextmanager
def stopping_at_once(folder: Path) -> Iterator[None]:
    """Let the first signal end the block, which begins after the last step.

    Raises:
        StoppedRun: When a signal arrives.
    """

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        del frame
        raise StoppedRun(signum, folder, step=None)

    before = {signum: signal.signal(signum, stop) for signum in STOP_SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class StopRequest:
    """From ``with`` on, the first signal only asks to stop; a second SIGINT is KeyboardInterrupt.

    At the end of ``with``, a signal that nobody has acted on goes to the handler of before.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self.signum = 0
        """The signal that this process has received; 0 for none."""

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._note) for signum in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self.signum and kind is None:
            signal.raise_signal(self.signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.signum = signum
        print(f"\n{signal.Signals(signum).name}: finishing the step", file=sys.stderr, flush=True)
