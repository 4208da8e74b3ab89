"""How a long step reports its progress; what is shown is decided by the caller."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

StepT = TypeVar("StepT")


@runtime_checkable
class Progress(Protocol):
    """Iterate over ``steps`` unchanged, optionally showing the progress."""

    def __call__(self, steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]: ...


def silent(steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]:
    """Show nothing."""
    del what, total
    return iter(steps)
