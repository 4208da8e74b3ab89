"""No hostile input runs code, writes outside, hangs or exhausts: each in a watched child."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pcd_hub.errors import WeightError
from tests.weights import trial
from tests.weights.trial import Case, Read

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="it forks, and reads /proc"),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that has computed nothing yet, for torch does not survive a fork otherwise."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_hostile_input_is_refused_or_harmless():
    done = run("-m", "tests.weights.hostile")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) inputs", done.stdout)[1]) > 600


# The watch itself.


def reading(read: Callable[[Path], object]) -> Callable[[Path], Read]:
    return lambda place: lambda: read(place)


def wait_for_ever(_: Path) -> None:
    while True:
        time.sleep(1)


def refuse(_: Path) -> None:
    raise WeightError("no")


def take_memory(_: Path) -> None:
    held = bytearray(trial.MAX_BYTES * 2)
    time.sleep(5)
    held.clear()


def compute(_: Path) -> None:
    end = time.process_time() + trial.MAX_SECONDS
    while time.process_time() < end:
        pass


NAUGHTY = [
    Case("good", reading(refuse), "no"),
    Case("reads", reading(lambda _: 1), ""),
    Case("another error", reading(lambda _: {}["x"]), ""),
    Case("executes", reading(lambda _: os.system("true")), ""),
    Case("writes", reading(lambda place: (place / "x").write_text("x")), ""),
    Case("writes home", reading(lambda _: Path("~/x").expanduser().mkdir()), ""),
    Case("in its store", reading(lambda place: (place / "store" / "x").write_text("x")), ""),
    Case("writes elsewhere", reading(lambda place: (place.parent / "x").write_text("x")), ""),
    Case("links elsewhere", reading(lambda place: (place.parent / "y").symlink_to("x")), ""),
    Case("changes modes", reading(lambda place: (place / "home").chmod(0o711)), ""),
    Case("takes memory", reading(take_memory), ""),
    Case("computes", reading(compute), ""),
    Case("hangs", reading(wait_for_ever), ""),
    Case("dies", reading(lambda _: os.abort()), ""),
    Case("goes on", reading(refuse), "no"),
]


def test_the_watch_sees_what_it_looks_for(tmp_path):
    root = tmp_path.resolve()
    code = """
import sys
from pathlib import Path
from tests.weights import test_hostile, trial
trial.MAX_SECONDS, trial.PATIENCE_SECONDS, trial.MAX_BYTES = 0.5, 15.0, 300 * 2**20
for one in trial.tried(test_hostile.NAUGHTY, Path(sys.argv[1])):
    print(one.name, one.verdict, one.is_harmless, *one.executed, *one.outside, sep=", ")
"""
    done = run("-c", code, str(root))
    assert done.stdout.splitlines() == [
        "good, refused, True",
        "reads, read, True",
        "another error, raised KeyError, False",
        "executes, read, False, os.system",
        "writes, read, False, x",
        "writes home, read, False, home/x",
        "in its store, read, True",
        f"writes elsewhere, read, False, {root}/x",
        f"links elsewhere, read, False, {root}/y",
        "changes modes, read, False, home",
        "takes memory, killed, False",
        "computes, read, False",
        "hangs, killed, False",
        "dies, died, False",
        "goes on, refused, True",
    ], done.stderr[-2000:]
