"""Collect the warnings that a run logs, for its report."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pcd_hub.files.strict_json import printable
from pcd_hub.files.write import atomic_write

log = logging.getLogger("pcd_hub")

_MAX_WARNINGS = 100


class LoggedWarnings(logging.Handler):
    """The different warnings of this package, oldest first."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []
        self._file: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Add a warning, and write all of them if they are kept in a file."""
        message = record.getMessage()
        if message not in self.messages and len(self.messages) < _MAX_WARNINGS:
            self.messages.append(message)
            self._write()

    def keep_in(self, file: Path) -> None:
        """Write the warnings to a file from now on, after those that an interrupted run left."""
        earlier: list[str] = []
        with suppress(OSError, ValueError):  # none, or damaged
            read = json.loads(file.read_text(encoding="utf-8"))
            known = read if isinstance(read, list) else []
            earlier = [printable(str(one)) for one in known if one not in self.messages]
        self.messages[:0] = earlier[:_MAX_WARNINGS]
        self._file = file
        self._write()

    def _write(self) -> None:
        if self._file and self.messages:
            with suppress(OSError):  # a full disk, which the next checkpoint reports
                atomic_write(self._file, json.dumps(self.messages, indent=1) + "\n")


@contextmanager
def logged_warnings() -> Iterator[LoggedWarnings]:
    """Collect the warnings that are logged in the block."""
    collector = LoggedWarnings()
    log.addHandler(collector)
    try:
        yield collector
    finally:
        log.removeHandler(collector)
