"""A list of tiny rows on generated scenes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluate.drawn_sets import draw_segmentation


@pytest.fixture(autouse=True)
def _no_pictures(no_pictures, monkeypatch):
    """Leave out all pictures, which take longer than a tiny run."""

    def nothing(*_, **__):
        pass

    monkeypatch.setattr("pcd_hub.train.run.save_views", nothing)
    monkeypatch.setattr("pcd_hub.train.frozen.segmentation_probe.save_sample_overlays", nothing)


@pytest.fixture
def tiny_list(tiny, tmp_path) -> Path:
    """Write a list with two trained rows and random weights, and its labelled set."""
    pairs = (argument.removeprefix("--").split("=", 1) for argument in tiny)
    base = {key.replace("-", "_"): yaml.safe_load(value) for key, value in pairs}
    base |= {"teacher.image_size": None, "run.max_steps": 2, "run.checkpoint_every_steps": 1}
    found = {
        "base": {"config": "quickstart", **base},
        "baseline": "pcd",
        "seeds": [0, 1],
        "rows": {
            "random": {"model": "random:test_resnet"},
            "pcd": None,
            "pooled": {"method": {"targets": "pooled"}},
        },
        "evaluations": {
            "discs": {
                "recipe": "linear_seg",
                "data": {"source": "discs", "image_size": 32, "num_workers": 0},
                "probe": {"steps": 2, "num_stages": 1},
                "run": {"seeds": [0, 1]},
            }
        },
    }
    draw_segmentation(tmp_path / "discs")
    return write(tmp_path / "list.yaml", found)


def write(file: Path, found: dict) -> Path:
    """Write a list."""
    file.write_text(yaml.safe_dump(found, sort_keys=False))
    return file


def changed(file: Path, *, replace: bool = False, **sections: Any) -> Path:
    """Change the list in ``file``: sections by name, merged if they are mappings."""
    found = yaml.safe_load(file.read_text())
    for name, value in sections.items():
        merge = isinstance(value, dict) and not replace
        found[name] = found[name] | value if merge else value
    return write(file, found)
