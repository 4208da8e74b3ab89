"""Fuzz the parsers of untrusted input with hypothesis.

    python -m tests.stress.fuzz --minutes 10
    python -m tests.stress.fuzz --minutes 2 --only manifest --seed 7

Each parser must return a value or raise a PCDHubError. Any other exception, more than 10 s of CPU
time or more than 2 GiB of memory for one input is a finding. Inputs are random bytes and
structures, and valid ones with a few changes, which find more. Prints the number of inputs per
parser and each finding once, with its smallest input; the exit status is 1 if there is a finding.
"""

import argparse
import contextlib
import itertools
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from pcd_hub.errors import PCDHubError
from tests.peak_memory import process_peak_bytes
from tests.stress.fuzz_targets import Target, build_targets

MAX_SECONDS = 10.0
MAX_BYTES = 2 * 1024**3


class TimeLimitExceededError(BaseException):
    """A BaseException, so that no ``except Exception`` of a parser catches it."""


def check_input(target: Target, value: Any) -> None:
    """Parse one input within the limits; raise unless it gives a value or a PCDHubError."""
    before = process_peak_bytes()
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        with contextlib.suppress(PCDHubError):
            target.parse(value)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if (growth := process_peak_bytes() - before) > MAX_BYTES:
        raise AssertionError(f"{growth} bytes of memory: expected at most {MAX_BYTES}")


def _raise_time_limit(*_: object) -> None:
    raise TimeLimitExceededError(f"more than {MAX_SECONDS:.0f} s")


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Interrupt inputs that exceed the time limit."""
    before = signal.signal(signal.SIGPROF, _raise_time_limit)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)


def run_examples(
    target: Target, *, examples: int, round_seed: int | None = None, count: Callable[[], None]
) -> None:
    """Try ``examples`` inputs; hypothesis shrinks and raises the first finding.

    Without a seed, the inputs are the same every time.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=round_seed is None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=(
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
            HealthCheck.filter_too_much,
        ),
    )
    @given(value=target.inputs)
    def parses_or_raises(value: Any) -> None:
        count()
        check_input(target, value)

    (parses_or_raises if round_seed is None else seed(round_seed)(parses_or_raises))()


def main() -> None:
    """Fuzz the parsers in turn until the time is over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", default="", help="parsers whose name contains this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=200, help="inputs per turn of a parser")
    options = parser.parse_args()
    tried: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    findings: dict[str, str] = {}
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch, time_limit():
        targets = build_targets(Path(scratch))
        names = [name for name in targets if options.only in name]
        for number in itertools.count(options.seed):
            for name in names:
                start = time.monotonic()
                if start > end:
                    print_summary(tried, spent, findings)
                    sys.exit(bool(findings))
                try:
                    run_examples(
                        targets[name],
                        examples=options.examples,
                        round_seed=number,
                        count=lambda name=name: tried.update([name]),
                    )
                except (Exception, TimeLimitExceededError) as error:
                    print_finding(findings, name, error)
                spent[name] += time.monotonic() - start


def print_finding(findings: dict[str, str], name: str, error: BaseException) -> None:
    """Print a finding the first time, and add it to ``findings``."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "hypothesis" not in f.filename
    ]
    file, line = Path(frames[-1].filename).name, frames[-1].lineno
    place = f"{name}: {type(error).__name__} at {file}:{line}"
    if place not in findings:
        findings[place] = str(error)
        notes = " ".join(getattr(error, "__notes__", []))
        print(f"FINDING {place}: {error}\n  {notes}", flush=True)


def print_summary(tried: Counter[str], spent: Counter[str], findings: dict[str, str]) -> None:
    """Print inputs and time per parser, and the totals."""
    for name, count in tried.items():
        print(f"{name:14} {count:8} inputs  {spent[name]:6.0f} s")
    print(f"{sum(tried.values())} inputs in {sum(spent.values()) / 60:.1f} minutes; ", end="")
    print(f"{len(findings)} findings; peak {process_peak_bytes() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
