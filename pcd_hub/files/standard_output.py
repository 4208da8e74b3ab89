"""End a program quietly when the reader of its output is gone."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CLOSED_PIPE = 141
"""Exit code of a program whose output is not read, as in ``pcd-hub list | head -1``: 128 + SIGPIPE,
as in shells."""


@contextmanager
def exit_if_closed() -> Iterator[None]:
    """Turn the error of a closed standard output inside the block into exit code 141."""
    try:
        try:
            yield
        finally:  # what is still buffered
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed():  # another pipe, such as a connection
            raise
        # Python flushes standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)


def _is_closed() -> bool:
    """Return True if standard output is a pipe without a reader; flushing shows it only once."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
