"""A short, deterministic form of the fuzzing, and checks that it detects findings."""

import json
import sys

import pytest
from hypothesis import strategies as st

from pcd_hub.errors import WeightError
from tests.stress import fuzz
from tests.stress.fuzz_targets import Target, build_targets

pytestmark = pytest.mark.stress

NAMES = ("json", "manifest", "record", "card", "config", "names", "header", "tensors")
NAMES += ("pin file",)
NAMES += ("list", "reference", "checkpoint", "head", "command line")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def targets(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCD_HUB_HOME", "")  # build_targets sets it
        yield build_targets(folder)


@pytest.mark.usefixtures("jaxtyping_off")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Initializing zero-element")
@pytest.mark.parametrize("name", NAMES)
def test_a_parser_returns_or_raises_for_every_input(folder, targets, name, monkeypatch):
    monkeypatch.setenv("PCD_HUB_HOME", str(folder / "store"))
    assert set(NAMES) == targets.keys()
    tried = []
    with fuzz.time_limit():
        fuzz.run_examples(targets[name], examples=100, count=lambda: tried.append(name))
    assert len(tried) > 30


def reject(_):
    raise WeightError("invalid")


def never_return(_):
    while True:
        pass


@pytest.mark.parametrize(
    ("parse", "finding"),
    [
        (reject, ""),
        (json.loads, "bad: JSONDecodeError"),
        (lambda raw: bytearray(100 * 2**20), "bad: AssertionError"),
        (never_return, "bad: TimeLimitExceededError"),
    ],
)
def test_other_errors_long_times_and_much_memory_are_findings(monkeypatch, capsys, parse, finding):
    if parse is never_return:
        monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.2)
    if "Assertion" in finding:
        peaks = iter(range(0, 10**12, 10**9))
        monkeypatch.setattr(fuzz, "MAX_BYTES", 10**6)
        monkeypatch.setattr(fuzz, "process_peak_bytes", lambda: next(peaks))
    targets = {"bad": Target(st.just(b"{"), parse)}
    monkeypatch.setattr(fuzz, "build_targets", lambda _: targets)
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--minutes", "0.01", "--examples", "3"])
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    assert bool(ended.value.code) == bool(finding)
    assert finding in capsys.readouterr().out
