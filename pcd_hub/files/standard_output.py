"""Output of a program whose reader is gone: a closed pipe, or a closed terminal."""

import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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


def print_error(message: str) -> None:
    """Print a line on standard error; if its terminal is closed, discard this and later output."""
    try:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    except OSError:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):  # or it is a file
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_closed() -> bool:
    """Return True if standard output is a pipe without a reader; flushing shows it only once."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
