import io
import logging

import pytest

from pcd_hub.evaluate.progress import LogHandler, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def seconds(monkeypatch):
    """The clock of every bar; a test sets it forward."""
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    return clock


def shown(monkeypatch, seconds, stderr, *, each: float, **how) -> str:
    monkeypatch.setattr("sys.stderr", stderr)
    for step, value in enumerate(progress(iter("abcde"), "reading", total=5, **how)):
        assert value == "abcde"[step]
        seconds[0] += each
    return stderr.getvalue()


def test_a_log_file_gets_a_line_now_and_then(monkeypatch, seconds):
    lines = shown(monkeypatch, seconds, io.StringIO(), each=6).splitlines()
    assert [line.split("|")[0][-5:] for line in lines] == ["  40%", "  80%", " 100%"]
    assert "2/5 [00:12" in lines[0]
    assert not any("\r" in line for line in lines)


def test_a_log_file_gets_no_cursor_movements_of_a_second_bar(monkeypatch, seconds):
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    for _ in progress(range(2), "first", total=2):
        for _ in progress(range(5), "second", total=5):
            seconds[0] += 6
    assert "second: " in stderr.getvalue()
    assert "\x1b" not in stderr.getvalue()


def test_what_is_soon_done_is_not_worth_a_line(monkeypatch, seconds):
    assert shown(monkeypatch, seconds, io.StringIO(), each=1.5) == ""


def test_a_terminal_gets_a_bar_that_goes_when_all_is_done(monkeypatch, seconds):
    text = shown(monkeypatch, seconds, Terminal(), each=1.5)
    assert "reading:  20%" in text
    assert "\n" not in text
    assert text.endswith("\r")


def test_other_processes_show_nothing(monkeypatch, seconds):
    assert shown(monkeypatch, seconds, Terminal(), each=6, disable=True) == ""


def test_messages_stand_above_a_bar(monkeypatch, seconds):
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    for step in progress(range(5), "reading", total=5):
        seconds[0] += 2
        if step == 3:
            LogHandler().emit(logging.makeLogRecord({"msg": "slow disk"}))
    assert "slow disk" in stderr.getvalue().replace("\r", "\n").splitlines()
