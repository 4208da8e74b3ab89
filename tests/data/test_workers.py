import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.utils.data import Dataset

from pcd_hub.data.shared_memory import Workers
from pcd_hub.data.workers import load_batches
from pcd_hub.errors import DataError

LOADING = """
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
        print("working", flush=True)
    input()
    raise ValueError("while both workers read")
"""


@pytest.fixture
def loading(tmp_path):
    """A process whose two workers are in a read of ten minutes."""
    script = tmp_path / "loading.py"
    script.write_text(LOADING)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == "working\n"
    yield process, psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_workers_ignore_signals_and_end_with_their_parent(loading):
    process, children = loading
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        for child in children:
            child.send_signal(getattr(signal, name))
    for _ in range(3):
        assert process.stdout.readline() == "working\n", "no worker ended"
    time.sleep(0.5)
    _, stderr = process.communicate("\n", timeout=60)
    assert "ValueError: while both workers read" in stderr
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


class Faulty(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise DataError(f"item {index} is missing: expected all DataError: items")


def test_an_error_of_a_worker_is_one_line_without_a_traceback():
    batches = load_batches(Faulty(), workers=Workers(1, 2), collate_fn=int, batch_size=None)
    with pytest.raises(DataError) as raised:
        next(batches)
    assert str(raised.value) == "item 0 is missing: expected all DataError: items"
