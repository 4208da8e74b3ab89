"""Loader processes ignore the signals of others, and end when their parent asks or is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LOADS = """
import time
from pcd_hub.data.shared_memory import Workers
from pcd_hub.data.workers import load_batches

class Slow(list):
    def __getitem__(self, index):
        time.sleep(0.1 if index < 4 else 600)
        return index

if __name__ == "__main__":
    batches = load_batches(
        Slow(range(100)), workers=Workers(2, 2), collate_fn=int, batch_size=None
    )
    for number in range(4):
        assert next(batches) == number
        print("at work", flush=True)
    input()
    raise ValueError("while both read something slow")
"""


@pytest.fixture
def loads(tmp_path):
    """A process whose two workers sit in a read that takes ten minutes."""
    script = tmp_path / "loads.py"
    script.write_text(LOADS)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == "at work\n"
    yield process, psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_they_ignore_signals_and_end_when_their_parent_asks(loads):
    process, children = loads
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        for child in children:
            child.send_signal(getattr(signal, name))
    for _ in range(3):
        assert process.stdout.readline() == "at work\n", "none has gone"
    time.sleep(0.5)
    _, said = process.communicate("\n", timeout=60)
    assert "ValueError: while both read something slow" in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
