"""Two parts of scripts/gpu_check.py, each a process of its own: the machine, and the GPU tests.

python scripts/gpu_check_parts.py machine FOLDER
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_NEEDED = (
    *("torch", "torchvision", "timm", "accelerate", "huggingface_hub", "safetensors", "numpy"),
    *("jaxtyping", "PIL", "yaml", "tqdm", "cv2", "matplotlib", "jinja2", "filelock"),
    *("packaging", "psutil"),
    *("tyro", "docstring_parser", "typeguard", "typing_extensions", "pytest", "pytest_timeout"),
)
_VERSIONS = (
    *("torch", "torchvision", "timm", "accelerate", "huggingface_hub", "numpy", "tyro", "pytest"),
    *("datasets", "triton"),
)


def describe_machine(folder: Path, *, tiny: bool) -> dict[str, Any]:
    """Describe device, versions, cores, memory, shared memory and disk."""
    found = {
        "versions": {"python": platform.python_version()} | {n: _version(n) for n in _VERSIONS},
        "missing": [name for name in _NEEDED if importlib.util.find_spec(name) is None],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shared_memory": _space(Path("/dev/shm")),  # noqa: S108
        "disk": _space(folder) | disk_speed(folder, size=2**22 if tiny else 2**28),
        "nvidia_smi": _nvidia_smi(),
        "platform": platform.platform(),
    }
    return found | _describe_device(tiny=tiny)


def _describe_device(*, tiny: bool) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - what is above also runs without it

    from measuring import DEVICE, matmul_rates, seconds  # noqa: PLC0415

    device: dict[str, Any] = {"type": DEVICE.type, "name": platform.processor() or "CPU"}
    if DEVICE.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        device |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    host = torch.empty(2**20 if tiny else 2**28, dtype=torch.uint8)
    host = host.pin_memory() if DEVICE.type == "cuda" else host
    copied = min(seconds(lambda: host.to(DEVICE, copy=True), 3))
    return {
        "device": device,
        "matmul_flop_per_s": matmul_rates(),
        "host_to_device_bytes_per_s": host.numel() / copied,
    }


def disk_speed(folder: Path, *, size: int) -> dict[str, float]:
    """Write and read a file of ``size`` bytes; the read bypasses the cache where it can."""
    path, block = folder / "disk_speed", os.urandom(2**20)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - started
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    with path.open("rb") as file:
        while file.read(len(block)):
            pass
    read = time.perf_counter() - started
    path.unlink()
    return {"write_bytes_per_s": size / written, "read_bytes_per_s": size / read}


def _space(folder: Path) -> dict[str, int]:
    usage = shutil.disk_usage(folder if folder.exists() else Path.cwd())
    return {"total_bytes": usage.total, "free_bytes": usage.free}


def _nvidia_smi() -> str | None:
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


class Recorder:
    """A pytest plugin that writes the outcome of each test as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: list[dict[str, Any]] = []

    def pytest_collectreport(self, report: Any) -> None:
        """Record a file that cannot be imported."""
        if report.failed:
            self._add(report, "failed")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record a test's outcome, and a set-up or tear-down that did not pass."""
        if report.when == "call" or report.outcome != "passed":
            self._add(report, report.outcome)

    def _add(self, report: Any, outcome: str) -> None:
        message = str(getattr(report.longrepr, "reprcrash", report.longrepr) or "")
        self._tests.append(
            {
                "name": report.nodeid,
                "outcome": outcome,
                "seconds": getattr(report, "duration", 0.0),
                "properties": dict(getattr(report, "user_properties", [])),
                "message": message[-600:],
            }
        )
        self._path.write_text(json.dumps({"tests": self._tests}))


def gpu_test_files() -> Iterator[str]:
    """Yield the test files with the marker ``gpu``: others may need libraries that are missing."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "pytest.mark.gpu" in path.read_text():
            yield str(path)


def run_tests(folder: Path) -> int:
    """Run the tests with the marker ``gpu``; return pytest's exit code.

    Without the checks of shapes, which need beartype, and with warnings that are no errors: the
    versions of the libraries are those of the machine. Options in PYTEST_ADDOPTS are for other
    runs of the tests, and are left out.
    """
    import pytest  # noqa: PLC0415

    os.environ.pop("PYTEST_ADDOPTS", None)
    recorder = Recorder(folder / "result.json")
    arguments = [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"]
    arguments += [*gpu_test_files(), "-o", "addopts=", "-m", "gpu", "-W", "default", "-ra", "-v"]
    arguments += ["-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}", "--durations=10"]
    return int(pytest.main(arguments, plugins=[recorder]))


def main(arguments: list[str]) -> None:
    """Run one part and write FOLDER/result.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["machine", "tests"])
    parser.add_argument("folder", type=Path, help="for result.json and temporary files")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes")
    options = parser.parse_args(arguments)
    if options.part == "tests":
        sys.exit(run_tests(options.folder))
    found = describe_machine(options.folder, tiny=options.tiny)
    (options.folder / "result.json").write_text(json.dumps(found, indent=1))
    print(found["nvidia_smi"] or "no nvidia-smi")


if __name__ == "__main__":
    main(sys.argv[1:])
