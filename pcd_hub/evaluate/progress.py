"""Progress on standard error: a bar on a terminal, an occasional line in a log file."""

import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from tqdm.auto import tqdm

StepT = TypeVar("StepT")


@runtime_checkable
class Progress(Protocol):
    """Iterate over ``steps`` unchanged, optionally showing the progress."""

    def __call__(self, steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]: ...


def silent(steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]:
    """Show nothing."""
    del what, total
    return iter(steps)


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
    return iter(tqdm(steps, desc=what, total=total, disable=disable, delay=1, **_style()))


def progress_of(name: str) -> Progress:
    """Return :func:`progress` with labels that start with ``name``, e.g. a model's."""

    def named(steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]:
        return progress(steps, f"{name}: {what}", total=total)

    return named


def _style() -> dict[str, Any]:
    if sys.stderr.isatty():
        return {"leave": False, "dynamic_ncols": True}
    return {"file": _Lines(), "mininterval": 10, "miniters": 1, "ncols": 100, "ascii": True}


class _Lines(io.TextIOBase):
    """Stream that writes each state of the bar to standard error on a new line."""

    def write(self, text: str, /) -> int:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
