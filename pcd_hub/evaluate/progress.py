"""Progress on standard error: a bar on a terminal, an occasional line in a log file."""

import io
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

from pcd_hub.data.progress import Progress, StepT


def progress(
    steps: Iterable[StepT], what: str, *, total: int, disable: bool = False
) -> Iterator[StepT]:
    """Iterate over ``steps`` and show the progress if it takes longer than a second.

    Args:
        steps: Any iterable.
        what: Label at the start of the line.
        total: Number of steps.
        disable: Show nothing, e.g. on all processes but the main one.
    """
    return iter(tqdm(steps, desc=what, total=total, disable=disable, delay=1, **bar_style()))


def progress_of(name: str) -> Progress:
    """Return :func:`progress` with labels that start with ``name``, e.g. a model's."""

    def named(steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]:
        return progress(steps, f"{name}: {what}", total=total)

    return named


class LogHandler(logging.Handler):
    """Writes log records to standard error above the bars that are shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def bar_style() -> dict[str, Any]:
    """Return tqdm's options: a bar on a terminal, a line every 10 s anywhere else."""
    if sys.stderr.isatty():
        return {"leave": False, "dynamic_ncols": True}
    return {"file": _Lines(), "mininterval": 10, "miniters": 1, "ncols": 120, "ascii": True}


_CURSOR_UP = "\x1b[A"
"""Sent by tqdm after each state of a second bar."""


class _Lines(io.TextIOBase):
    """Stream that writes each new state of the bar to standard error on a new line."""

    _last = ""

    def write(self, text: str, /) -> int:
        line = text.replace(_CURSOR_UP, "").strip()
        if line and line != self._last:
            sys.stderr.write(f"{line}\n")
            self._last = line
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
