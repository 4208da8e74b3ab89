"""A small labelled set, and a tiny distillation that it scores."""

import json
from pathlib import Path

import pytest

from tests.evaluate.drawn_sets import draw_segmentation


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """Return the folder of 12 training and 5 test images with 2 classes."""
    return draw_segmentation(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="session")
def probed(tiny, labelled) -> list[str]:
    """Return the arguments of a run that is scored on the labelled set every 2 steps."""
    scored = [f"--probe-data={labelled}", "--run.measure-every-steps=2", "--run.no-store"]
    return [*tiny, "--data.image-size=64", *scored]


def history(folder: Path) -> list[dict[str, float]]:
    """Return the lines of probe_data.jsonl."""
    return [json.loads(line) for line in (folder / "probe_data.jsonl").read_text().splitlines()]
