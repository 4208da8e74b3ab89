"""Runs on several sources, on sources that change, and on the records of one source."""

import json
import shutil

import pytest
import torch

from pcd_hub.data.sources.held_out import split_held_out
from pcd_hub.data.sources.open import open_source
from pcd_hub.errors import DataError
from pcd_hub.train.run_folder.checkpoints import write_checkpoint
from tests.data.sources.archives.test_zips import make_zip, png
from tests.train.conftest import image_folder, run, trace


def many(tiny, *sources):
    return [a for a in tiny if not a.startswith("--data.source")] + ["--data.source", *sources]


def test_several_sources_are_recorded_and_resumed(tiny, tmp_path):
    packed = make_zip(tmp_path / "x.zip", [(f"{n}.png", png(n)) for n in range(20)])
    folder = str(image_folder(tmp_path / "images", 20, broken=0))
    arguments = [*many(tiny, folder, packed), "--run.no-store"]
    out = run(arguments, tmp_path / "run")
    config = json.loads((out / "config.json").read_text())
    record = json.loads((out / "record.json").read_text())
    assert config["data"]["source"] == record["data"]["source"] == [folder, packed]
    assert record["data"]["images"] == 40
    assert record["data"]["fingerprint"].startswith("40 images of 2 sources: 20 files, paths")
    assert (
        f"- Data: {folder}, {packed}, 40 images" in next(out.glob("export*/README.md")).read_text()
    )
    whole = trace(out)
    (out / "checkpoints" / "step_00000006.pt").unlink()
    run(arguments, out, "--run.resume")
    assert trace(out) == whole
    again = run([f"--config={out / 'config.json'}"], tmp_path / "again", "--run.no-store")
    assert trace(again) == whole


def test_a_single_source_is_recorded_as_the_release_before_did(tiny, tmp_path):
    out = run([*tiny, "--run.no-store"], tmp_path / "run")
    assert json.loads((out / "config.json").read_text())["data"]["source"] == "scenes:64"
    assert json.loads((out / "record.json").read_text())["data"]["source"] == "scenes:64"
    path = out / "checkpoints" / "step_00000003.pt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["config"]["data"]["source"] == "scenes:64"
    assert checkpoint["inputs"]["data"] == "64 generated scenes of 96 px, seed 0"
    write_checkpoint(checkpoint, path)
    (out / "checkpoints" / "step_00000006.pt").unlink()
    whole = trace(out)
    run([*tiny, "--run.no-store"], out, "--run.resume")
    assert trace(out) == whole


def change_at(monkeypatch, step, change):
    """Call ``change`` in the loader process before the batch of ``step`` is read."""
    from pcd_hub.train.monitors.progress import Progress

    wait_for, steps = Progress.wait_for, []

    def waiting(self, batches, count):
        steps.append(1)
        if len(steps) == step + 1:
            change()
        return wait_for(self, batches, count)

    monkeypatch.setattr(Progress, "wait_for", waiting)


def test_files_that_change_while_training_are_counted_and_named(
    tiny, tmp_path, monkeypatch, caplog
):
    images = image_folder(tmp_path / "images", 400, broken=0)

    def change():
        (images / "0000.png").unlink()
        (images / "0001.png").write_bytes(b"replaced")
        (images / "0002.png").write_bytes((images / "0002.png").read_bytes()[:60])

    change_at(monkeypatch, 1, change)
    out = run([*many(tiny, str(images)), "--run.no-store", "--run.max-steps=50"], tmp_path / "run")
    assert "0000.png (FileNotFoundError" in caplog.text
    assert "0001.png (UnidentifiedImageError" in caplog.text
    assert "0002.png (" in caplog.text
    assert "skipped 3 broken images in total" in caplog.text
    assert (out / "record.json").exists()


def test_what_the_survey_accepts_is_not_too_much_for_the_run(tiny, tmp_path, caplog):
    """One of 100 images is broken, of which some are held out: still 1 %."""
    images = image_folder(tmp_path / "images", 100, broken=0)
    source = open_source(str(images))
    training, held_out = split_held_out(source, share=0.1)
    assert held_out is not None
    (images / training.name(0)).write_bytes(b"<html>")
    arguments = ["--run.no-store", "--data.held-out=0.1", "--run.max-steps=18"]
    out = run([*many(tiny, str(images)), *arguments], tmp_path / "run")
    assert "skipped 1 broken images in total" in caplog.text
    assert (out / "record.json").exists()


def test_a_folder_that_vanishes_ends_with_a_checkpoint_that_resumes(tiny, tmp_path, monkeypatch):
    images = image_folder(tmp_path / "images", 80, broken=0)
    arguments = [*many(tiny, str(images)), "--run.no-store", "--run.checkpoint-every-steps=100"]
    whole = trace(run(arguments, tmp_path / "whole"))
    shutil.copytree(images, tmp_path / "copy")
    with monkeypatch.context() as patch:
        change_at(patch, 4, lambda: shutil.rmtree(images))
        with pytest.raises(
            DataError,
            match=r"^none of 32 images that were tried can be decoded, the first is [^\n]*$",
        ):
            run(arguments, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pt")] == [
        "step_00000004.pt"
    ]
    shutil.copytree(tmp_path / "copy", images)
    run(arguments, tmp_path / "run", "--run.resume")
    assert trace(tmp_path / "run") == whole
