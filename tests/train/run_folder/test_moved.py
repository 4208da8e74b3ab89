"""A run whose images or teacher were moved continues from their new place, and only from there."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pcd_hub.data.scenes import render_scene
from pcd_hub.errors import CheckpointError
from pcd_hub.train import distill
from tests.train.conftest import run

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def moved(tiny, tiny_teacher, tmp_path) -> Path:
    """A run of 6 steps, whose images and teacher are in other folders afterwards."""
    images, teacher = tmp_path / "images", tmp_path / "teacher"
    images.mkdir()
    for index in range(16):
        Image.fromarray(render_scene(0, index, size=48).image).save(images / f"{index}.png")
    shutil.copytree(tiny_teacher, teacher)
    kept = [each for each in tiny if not each.startswith(("--data.source", "--teacher.source"))]
    sources = (f"--data.source={images}", f"--teacher.source=local-dir:{teacher}")
    folder = run(kept, tmp_path / "run", *sources)
    images.rename(tmp_path / "moved")
    teacher.rename(tmp_path / "moved_teacher")
    return folder


def test_a_run_continues_with_what_was_moved_and_remembers_where(moved, tmp_path):
    teacher = f"local-dir:{tmp_path / 'moved_teacher'}"
    words = [str(tmp_path / "moved"), "--resume", str(moved)]
    distill.main([*words, "--teacher", teacher, "--run.max-steps=7"])
    changes = json.loads((moved / "changes.json").read_text())
    assert {one["what"]: one["to"] for one in changes} == {
        "--data.source": str(tmp_path / "moved"),
        "--teacher.source": teacher,
        "--run.max-steps": 7,
    }
    distill.main(["--resume", str(moved), "--run.max-steps=8"])
    distill.main([*words, "--run.max-steps=9"])
    assert len((moved / "metrics.jsonl").read_text().splitlines()) == 9


def test_other_images_in_that_place_are_refused(moved, tmp_path):
    teacher = f"local-dir:{tmp_path / 'moved_teacher'}"
    (tmp_path / "moved" / "3.png").unlink()
    with pytest.raises(CheckpointError, match="the data changed after step 6: the run began with"):
        distill.main([str(tmp_path / "moved"), "--resume", str(moved), "--teacher", teacher])
