"""Tiny distillations with held-out images."""

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(scope="session")
def measured(tiny) -> list[str]:
    """Return the arguments of a tiny run with about 10 of 120 images held out."""
    return [
        *tiny,
        "--data.source=scenes:120",
        "--data.held-out=0.08",
        "--run.max-steps=12",
        "--run.measure-every-steps=2",
        "--run.no-store",
    ]


def history(folder: Path) -> list[dict]:
    """Return the lines of held_out.jsonl."""
    return [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]


@pytest.fixture
def own_precision():
    """A process reads its precision once, and other tests have another one."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
