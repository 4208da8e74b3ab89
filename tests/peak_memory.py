"""Peak memory of this process."""

import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def process_peak_bytes() -> int:
    """Return the peak memory of this process since its start, in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_growth(function: Callable[[], object]) -> int:
    """Call ``function`` and return the growth of peak memory above the memory before, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before = _memory("VmRSS")
    function()
    return _memory("VmHWM") - before


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
