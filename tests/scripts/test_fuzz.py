"""A short campaign, always the same; and the campaign finds what it looks for."""

import json
import sys

import pytest
from hypothesis import strategies as st

import fuzz
from pcd_hub.errors import WeightError

NAMES = ("json", "manifest", "record", "card", "config", "names", "header", "tensors", "lock")
NAMES += ("list", "reference", "checkpoint", "head", "command line")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def known(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCD_HUB_HOME", "")  # it is set there
        yield fuzz.parsers(folder)


@pytest.mark.usefixtures("jaxtyping_off")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Initializing zero-element")
@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_decided(folder, known, name, monkeypatch):
    monkeypatch.setenv("PCD_HUB_HOME", str(folder / "store"))
    assert set(NAMES) == known.keys()
    tried = []
    with fuzz.bounded():
        fuzz.round_of(known[name], examples=100, count=lambda: tried.append(name))
    assert len(tried) > 30


def refuse(_):
    raise WeightError("no")


def compute(_):
    while True:
        pass


@pytest.mark.parametrize(
    ("parse", "finding"),
    [
        (refuse, ""),
        (json.loads, "bad: JSONDecodeError"),
        (lambda raw: bytearray(100 * 2**20), "bad: AssertionError"),
        (compute, "bad: Slow"),
    ],
)
def test_another_error_a_long_time_and_much_memory_are_findings(
    monkeypatch, capsys, parse, finding
):
    if parse is compute:
        monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.2)
    grown = iter(range(0, 10**12, 10**9)) if "Assertion" in finding else None
    if grown:
        monkeypatch.setattr(fuzz, "MAX_BYTES", 10**6)
        monkeypatch.setattr(fuzz, "process_peak_bytes", lambda: next(grown))
    bad = {"bad": fuzz.Parser(st.just(b"{"), parse)}
    monkeypatch.setattr(fuzz, "parsers", lambda _: bad)
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--minutes", "0.01", "--examples", "3"])
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    assert bool(ended.value.code) == bool(finding)
    assert finding in capsys.readouterr().out
