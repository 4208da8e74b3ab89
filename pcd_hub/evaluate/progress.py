"""Progress on standard error: a bar on a terminal; now and then a line in a log file."""

import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from pcd_hub.evaluate.segmentation import Progress

StepT = TypeVar("StepT")


def progress(
    steps: Iterable[StepT], what: str, *, total: int, disable: bool = False
) -> Iterator[StepT]:
    """Iterate over ``steps`` and show how far it is, from the second second on.

    Args:
        steps: What is iterated over.
        what: What is done, for the beginning of the line.
        total: How many steps there are.
        disable: Whether to show nothing, as on all processes but the main one.
    """
    return iter(tqdm(steps, desc=what, total=total, disable=disable, delay=1, **_style()))


def progress_of(name: str) -> Progress:
    """The same, with ``name`` before what is done, as of the model that does it."""

    def named(steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]:
        return progress(steps, f"{name}: {what}", total=total)

    return named


def _style() -> dict[str, Any]:
    if sys.stderr.isatty():
        return {"leave": False, "dynamic_ncols": True}
    return {"file": _Lines(), "mininterval": 10, "miniters": 1, "ncols": 100, "ascii": True}


class _Lines(io.TextIOBase):
    """Standard error, with a line for each state of a bar instead of one that is overwritten."""

    def write(self, text: str, /) -> int:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
