"""Check a machine with one GPU in one command: versions, tests, benchmarks, a short training.

    python scripts/gpu_check.py --output-dir OUT
    python scripts/gpu_check.py --output-dir OUT --images DIR --teacher local-dir:DIR --minutes 8
    python scripts/gpu_check.py --output-dir OUT --device cpu --tiny

It needs no network. Each part runs in a process of its own with a time limit, and a part that fails
does not stop the others. The training takes what is left of the minutes. OUT gets at most 8 files,
each below 16 MiB:

- gpu_check.md: one table; gpu_check.json: all numbers; gpu_check.log: what the parts printed.
- student.tar.00, student.tar.01 ...: the training run with the exported weight.
  ``cat student.tar.* | tar x`` joins and unpacks them.

It needs the package's other dependencies too (its result lists what is ``missing``), and pytest 9
for the tests; not ``datasets``, ``pycocotools`` or ``beartype``. Machines that train have most of
them, but rarely ``tyro``. Without a network, copy the wheels of what is missing:

    pip download --no-deps --only-binary=:all: -d wheels tyro docstring_parser typeguard
    python -m pip install --no-index --no-deps --target site wheels/*.whl   # there
    PYTHONPATH=site python scripts/gpu_check.py --output-dir OUT
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gpu_check_output import LOG_BYTES, pack_run, write_report

ROOT = Path(__file__).resolve().parents[1]
_SCRIPTS = ROOT / "scripts"
_FULL_MINUTES = 8.0
_RESERVE = 12.0
"""Seconds at the end for packing the student and for ending a part that overruns."""
_START_AND_EXPORT = 30.0
"""Seconds of a training run before the first step and after the last one, at most."""

SMALL_MODEL = ("--teacher=test_resnet", "--student=test_resnet", "--queue-length=16")
TINY = (*SMALL_MODEL, "--image-size=32", "--batch-size=4", "--steps=1", "--repeats=1")
TINY += ("--synthetic-images=8",)
FULL = ("--batch-size=256", "--steps=24", "--repeats=1")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the check."""

    name: str
    minutes: float
    """Time limit of a check of 8 minutes; infinite for the time that is left."""
    command: Callable[[argparse.Namespace, Path, float], list[str]]
    """Builds the command from the options, a folder for its files, and the seconds it may take."""


def _benchmark(*arguments: str, tiny: tuple[str, ...] = ()) -> Callable[..., list[str]]:
    def command(options: argparse.Namespace, folder: Path, _: float) -> list[str]:
        name, *full = arguments
        sizes = [*TINY, *tiny] if options.tiny else [*FULL, *full]
        images = [] if options.images is None else [f"--images={options.images}"]
        script = str(_SCRIPTS / "benchmark.py")
        return [script, name, *sizes, *images, f"--out={folder / 'result.json'}"]

    return command


def _own_part(name: str) -> Callable[..., list[str]]:
    def command(options: argparse.Namespace, folder: Path, _: float) -> list[str]:
        size = ["--tiny"] if options.tiny else []
        return [str(_SCRIPTS / "gpu_check_parts.py"), name, str(folder), *size]

    return command


def training_command(options: argparse.Namespace, folder: Path, seconds: float) -> list[str]:
    """Build the command of a training run that is complete after ``seconds``."""
    hours = max(0.0, seconds - _START_AND_EXPORT) / 3600
    length = "--run.max-steps=12" if options.tiny else f"--run.hours={hours:.5f}"
    command = ["-m", "pcd_hub", "distill"]
    if options.images is not None:
        command += [str(options.images), f"--teacher={options.teacher}"]
    else:
        command += ["quickstart", "--probe-scenes=0"]
        if not options.tiny:  # the learning rate of the configuration is for batches of 16 images
            command += ["--optim.global-batch-size=256", "--optim.lr-per-256=4e-3"]
            command += ["--data.num-workers=None"]
    if options.tiny:
        command += ["--student=test_resnet", "--optim.global-batch-size=4"]
        command += ["--data.image-size=32", "--data.num-workers=0"]
    return [*command, length, "--run.no-store", f"--run.output-dir={folder / 'run'}"]


PARTS = (
    Part(name="machine", minutes=0.4, command=_own_part("machine")),
    Part(
        name="step at 224 px",
        minutes=1.2,
        command=_benchmark("step", "--image-size=224", "--no-compile", "--also", "resident"),
    ),
    Part(
        name="step at 112 px",
        minutes=0.9,
        command=_benchmark("step", "--image-size=112", "--no-compile", "--also", "resident+cached"),
    ),
    Part(
        name="loss",
        minutes=0.6,
        command=_benchmark(
            *("loss", "--loss-cases", "25088,65536,256", "8192,65536,256", "25088,65536,1024"),
            tiny=("--loss-cases", "64,512,16"),
        ),
    ),
    Part(
        name="data",
        minutes=0.4,
        command=_benchmark("data", "--data-sizes", "112", "224", tiny=("--data-sizes", "32")),
    ),
    Part(name="tests", minutes=1.4, command=_own_part("tests")),
    Part(
        name="compiled step at 224 px",
        minutes=1.1,
        command=_benchmark("step", "--image-size=224", "--compile"),
    ),
    Part(name="training", minutes=float("inf"), command=training_command),
)
"""In this order: what is needed most first."""

NOT_TINY = {"step at 112 px", "compiled step at 224 px"}
"""Left out with --tiny, where they would be the first step again."""


def run_parts(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run all parts, and write the report after each of them."""
    output_dir: Path = options.output_dir
    end = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(options).items()}}
    report |= {"parts": {}, "student": {"files": []}}
    with (output_dir / "gpu_check.log").open("w") as log:
        for part in PARTS:
            if options.tiny and part.name in NOT_TINY:
                continue
            left = end - time.monotonic() - _RESERVE
            limit = min(left, 60 * part.minutes * options.minutes / _FULL_MINUTES)
            report["parts"][part.name] = run_part(part, options, work, limit, log)
            write_report(report, output_dir)
            if part.name == "machine" and not _has_device(report, options.device):
                break
    report["student"] = pack_run(work / "training" / "run", output_dir)
    report["seconds"] = 60 * options.minutes - (end - time.monotonic())
    write_report(report, output_dir)
    return report


def _has_device(report: dict[str, Any], device: str) -> bool:
    """Return whether the requested device was found; at GPU sizes a CPU would take hours."""
    machine = report["parts"]["machine"]
    if device == "cpu" or machine["result"].get("device", {}).get("type") == "cuda":
        return True
    machine["status"] = "failed: PyTorch finds no CUDA device; use --device cpu --tiny"
    print(machine["status"])
    return False


def run_part(
    part: Part, options: argparse.Namespace, work: Path, limit: float, log: IO[str]
) -> dict[str, Any]:
    """Run one part within ``limit`` seconds; return its status, duration and result."""
    if limit <= 0:
        return {"status": "skipped: no time was left", "seconds": 0.0, "result": {}}
    folder = work / part.name.replace(" ", "_")
    folder.mkdir()
    command = [sys.executable, *part.command(options, folder, limit)]
    print(f"{part.name}: at most {limit:.0f} s", flush=True)
    started = time.monotonic()
    status, output = run_limited(command, limit, folder / "output.txt", options.device)
    seconds = time.monotonic() - started
    log.write(f"==== {part.name}: {status} after {seconds:.1f} s: {' '.join(command)}\n{output}\n")
    log.flush()
    print(f"{part.name}: {status} after {seconds:.1f} s", flush=True)
    result = read_json(folder / "result.json")
    if part.name == "training":
        result = training_result(folder / "run")
    return {"status": status, "seconds": seconds, "limit": limit, "result": result}


def run_limited(command: list[str], limit: float, output: Path, device: str) -> tuple[str, str]:
    """Run a command in a process group of its own; return its status and the end of its output."""
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = [str(ROOT), *(str(Path(path).resolve()) for path in given)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    environ |= {"HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": str(output.parent)}
    if device == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    with output.open("w") as file:
        process = subprocess.Popen(  # noqa: S603
            command,
            env=environ,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else f"failed: exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"failed: stopped at its limit of {limit:.0f} s"
        finally:
            end_group(process)
    text = output.read_text(errors="replace")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    shown = f"{status}: {last.strip()[:300]}" if last and "exit code" in status else status
    return shown, text[-LOG_BYTES:]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: first asked, after 5 seconds killed."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # children that outlive it


def training_result(run: Path) -> dict[str, Any]:
    """Summarise a run: steps, losses, images per second, and what its record says."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = read_json(run / "record.json")
    found: dict[str, Any] = {}
    for key in ("loss", "images_per_s", "data_wait"):
        if values := [line[key] for line in lines if line.get(key) is not None]:
            found[key] = {"first": values[0], "last": values[-1]}
    return found | {
        "steps": record.get("steps") or (lines[-1]["step"] + 1 if lines else 0),
        "name": record.get("name"),
        "metrics": record.get("metrics", {}),
        "decisions": read_json(run / "decisions.json"),
    }


def read_json(path: Path) -> Any:
    """Read a JSON file; an empty dictionary if it is missing or incomplete."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="folder to train on; else generated scenes")
    parser.add_argument(
        "--teacher", default="quickstart", help="for --images, as pcd-hub distill takes it"
    )
    parser.add_argument("--minutes", type=float, default=_FULL_MINUTES, help="for everything")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to try the script")
    return parser


def main(arguments: list[str]) -> None:
    """Run the check; exit with 1 if a part failed."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes}: expected a number above 0")
    if options.images is not None:
        options.images = options.images.resolve()
        if not options.images.is_dir():
            parser.error(f"--images {options.images}: expected a folder")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as work:
        report = run_parts(options, Path(work))
    print((options.output_dir / "gpu_check.md").read_text())
    failed = [name for name, part in report["parts"].items() if part["status"] != "ok"]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
