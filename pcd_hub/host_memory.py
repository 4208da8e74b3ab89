"""How much memory of the host a process can still use."""

import os
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60


def available_host_memory() -> int | None:
    """Return the bytes of memory that this process can still use; None if unknown.

    That is the system's available memory, or less if the process is in a control group with a
    limit (a container, a batch job).
    """
    found = [size for size in (_system_memory(), _cgroup_memory()) if size is not None]
    return min(found, default=None)


def _system_memory() -> int | None:
    with suppress(OSError, ValueError, IndexError):  # Linux
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):  # macOS and others: all of the memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _cgroup_memory() -> int | None:
    """Return what is left of the limit of this process's control group, version 2 or 1."""
    for limit, used in (
        (_CGROUP / "memory.max", _CGROUP / "memory.current"),
        (_CGROUP / "memory/memory.limit_in_bytes", _CGROUP / "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such file; "max" for no limit
            size = int(limit.read_text())
            if size < _UNLIMITED:
                return max(0, size - int(used.read_text()) + _reclaimable(limit.parent))
    return None


def _reclaimable(group: Path) -> int:
    """Return the bytes of cached files, which count as used but are freed when needed."""
    with suppress(OSError, ValueError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, size = line.partition(" ")
            if name in {"inactive_file", "total_inactive_file"}:
                return int(size)
    return 0
