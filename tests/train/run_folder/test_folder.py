"""Checkpoints by themselves; the recipes' own tests resume whole runs."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from pcd_hub.errors import CheckpointError
from pcd_hub.train.configs.distill import DistillConfig, RunConfig
from pcd_hub.train.run_folder.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = DistillConfig(run=RunConfig(output_dir=tmp_path / "run", keep_checkpoints=1))
    yield RunFolder.open(Accelerator(cpu=True), config, default_name="test", inputs={"data": "x"})
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_random_state_goes_through_a_checkpoint(folder):
    folder.save_checkpoint(1, {}, {})
    drawn = torch.rand(3)
    folder.load_checkpoint(steps=1)
    assert torch.equal(torch.rand(3), drawn)


def test_a_run_is_not_resumed_with_another_seed(folder):
    folder.save_checkpoint(1, {}, {})
    config = DistillConfig(run=dataclasses.replace(folder._config.run, seed=1))
    with pytest.raises(CheckpointError, match=r"written with another --run.seed \(0, now 1\)"):
        RunFolder(folder.path, folder._accelerator, config, inputs=folder.inputs).load_checkpoint(
            steps=1
        )


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def append(folder):
    folder.write_metrics(step=1)


def cut(folder):
    folder.load_checkpoint(steps=2)


@pytest.mark.parametrize(("write", "refused"), [(append, "open"), (cut, "write_text")])
def test_a_full_disk_between_checkpoints_is_said(folder, monkeypatch, write, refused):
    folder.write_metrics(step=0)
    folder.save_checkpoint(1, {}, {})
    monkeypatch.setattr(Path, refused, full)
    monkeypatch.setattr("pcd_hub.train.run_folder.folder._damage", lambda _: None)
    said = (
        r"metrics.jsonl \(.*No space left .*\); the last checkpoint is step_00000001.pt. Make room"
    )
    with pytest.raises(CheckpointError, match=f"cannot write .*{said}, then add --run.resume"):
        write(folder)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_has_it_before_the_old_one_goes(
    folder, monkeypatch
):
    folder.save_checkpoint(1, {}, {})
    done = []

    def watch(name, what):
        function = getattr(os, name)

        def watched(*arguments, **options):
            done.append((name, what(arguments[0])))
            return function(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    watch("fsync", lambda descriptor: os.fstat(descriptor).st_ino)
    watch("replace", lambda source: Path(source).stat().st_ino)
    watch("unlink", lambda path: Path(path).name)
    folder.save_checkpoint(2, {}, {})
    checkpoints = folder.path / "checkpoints"
    (new,) = checkpoints.glob("*.pt")
    order = [
        ("fsync", new.stat().st_ino),
        ("replace", new.stat().st_ino),
        ("fsync", checkpoints.stat().st_ino),
        ("unlink", "step_00000001.pt"),
    ]
    assert [each for each in done if each in order] == order
