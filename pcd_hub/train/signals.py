"""Stop signals: finish the step, save, print how to resume.

SIGTERM, SIGINT (Ctrl-C), SLURM's SIGUSR1, and SIGHUP, which a terminal sends when it is closed.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from accelerate import Accelerator

from pcd_hub.data.workers import STOP_SIGNALS
from pcd_hub.files.standard_output import print_error
from pcd_hub.train.run_folder.how_to_continue import how_to_continue

_HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows


class StoppedRun(BaseException):
    """Raised after a signal has stopped a run and the run is saved.

    ``exit_code`` follows the shells' convention. Like KeyboardInterrupt, it is not an error, and
    ``except Exception`` must not catch it.

    Args:
        signum: The signal.
        folder: Folder of the run.
        step: Completed steps; None if training is complete but the result is not written.
    """

    def __init__(self, signum: int, folder: Path, *, step: int | None) -> None:
        self.signum, self.folder, self.step = signum, folder, step
        self.exit_code = 128 + signum
        super().__init__(self.message(how_to_continue(folder)))

    def message(self, remedy: str) -> str:
        """Describe what is saved, and how ``remedy`` continues."""
        saved, action = "the training", "write its result"
        if self.step is not None:
            saved, action = f"step {self.step}", "continue"
        name = signal.Signals(self.signum).name
        return f"stopped by {name} after {saved}, which is saved; {action} with {remedy}"


class InterruptedStep(StoppedRun):
    """Raised by a second SIGINT, in the middle of a step; ``step`` is that of the last save."""

    def message(self, remedy: str) -> str:
        """Describe what is saved, and how ``remedy`` continues."""
        if not self.step:
            return (
                "stopped by a second SIGINT before the first checkpoint; start the run again, in "
                "another folder"
            )
        return (
            f"stopped by a second SIGINT; the last checkpoint is after step {self.step}; continue "
            f"with {remedy}"
        )


def stopped_run(signum: int, step: int, folder: Path, accelerator: Accelerator) -> StoppedRun:
    """Build the exception to raise after the checkpoint is written; call it on every process.

    A launcher ends all processes when one exits, so all wait for the main process to write.
    """
    accelerator.wait_for_everyone()
    return StoppedRun(signum, folder, step=step)


@contextmanager
def stopping_at_once(folder: Path) -> Iterator[None]:
    """Interrupt the block, which runs after the last step, at the first signal.

    Raises:
        StoppedRun: When a signal arrives.
    """

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        del frame
        raise StoppedRun(signum, folder, step=None)

    before = _handle(stop)
    try:
        yield
    finally:
        _restore(before)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Install a handler of all stop signals; return the previous ones.

    Python handles signals in the main thread alone; a run in another thread is not stopped.
    ``nohup`` makes its command ignore SIGHUP, which stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    kept = {_HANGUP} if _HANGUP and signal.getsignal(_HANGUP) is signal.SIG_IGN else set()
    return {signum: signal.signal(signum, handler) for signum in STOP_SIGNALS if signum not in kept}


def _restore(handlers: Mapping[int, Any]) -> None:
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


class StopRequest:
    """Context manager that records the first signal; a second SIGINT ends the run at once.

    On exit, a signal that has not stopped the run is passed to the previous handler.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self.signum = 0
        """The signal that this process has received; 0 for none."""
        self._make: Callable[[], BaseException] = KeyboardInterrupt

    def end_with(self, make: Callable[[], BaseException]) -> None:
        """Set the function that makes the exception for a second SIGINT."""
        self._make = make

    def __enter__(self) -> Self:
        self._before = _handle(self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        _restore(self._before)
        if self.signum and kind is None:
            signal.raise_signal(self.signum)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = signum
        once_more = ""
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, self._interrupt)
            once_more = "; a second Ctrl-C ends the run without it"
        print_error(f"\n{signal.Signals(signum).name}: finishing and saving the step{once_more}")

    def _interrupt(self, signum: int, frame: FrameType | None) -> NoReturn:
        del signum, frame
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise self._make()
