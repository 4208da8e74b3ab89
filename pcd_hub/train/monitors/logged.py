"""Collect the warnings that a run logs, for its report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("pcd_hub")

_MAX_WARNINGS = 100


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.messages and len(self.messages) < _MAX_WARNINGS:
            self.messages.append(message)


@contextmanager
def logged_warnings() -> Iterator[list[str]]:
    """Yield a list that receives each different warning of this package logged in the block."""
    collector = _Collector()
    log.addHandler(collector)
    try:
        yield collector.messages
    finally:
        log.removeHandler(collector)
