"""The garbage collector while modules are imported."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Do without the garbage collector, which takes a fifth of the time of the imports."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def keep_imported() -> None:
    """Keep all present objects to the end of a program, whose imported modules stay.

    Python otherwise looks through them again as it ends, for a second. Does nothing in a notebook
    or an interactive session, whose objects may go, nor a second time.
    """
    is_session = hasattr(sys, "ps1") or "IPython" in sys.modules
    if not is_session and not gc.get_freeze_count():
        gc.freeze()
