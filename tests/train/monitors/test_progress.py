"""The progress of a training run, on a terminal and in a log file."""

import io

import pytest
from accelerate import Accelerator

from pcd_hub.train.monitors.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def trained(monkeypatch):
    """Train 40 steps of 6 s each and return what was written to standard error."""
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def train(stderr: io.StringIO) -> str:
        monkeypatch.setattr("sys.stderr", stderr)
        accelerator = Accelerator(cpu=True)
        progress = Progress(accelerator, 8, start=0, total_steps=40, label="resnet18")
        for step in range(9, 40, 10):
            clock[0] += 6
            progress.measure(step, loss=step / 10, lr=2e-3)
        progress.close()
        return stderr.getvalue()

    return train


def test_a_log_file_gets_whole_lines(trained):
    lines = trained(io.StringIO()).splitlines()
    assert [line.partition("|")[0] for line in lines] == [
        "resnet18:   0%",
        "resnet18:  50%",
        "resnet18: 100%",
    ]
    assert lines[1].endswith("loss 1.900, 13.3 images/s, data 0%, lr 2.0e-03]")
    assert not any("\r" in line for line in lines)


def test_the_finished_bar_stays_on_a_terminal(trained):
    text = trained(Terminal())
    assert "resnet18:  25%" in text
    assert "loss 3.900" in text.splitlines()[-1]
    assert text.endswith("\n")
