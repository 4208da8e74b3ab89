"""The garbage collector while modules are imported."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Do without the garbage collector, which takes a fifth of the time of the imports."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def keep_imported() -> None:
    """Keep all present objects to the end of the process.

    For programs, whose imported modules stay: Python otherwise looks through them again as it
    ends, for a second.
    """
    gc.freeze()
