"""Checkpoints alone; the recipes' own tests resume whole runs."""

import dataclasses
import errno
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from pcd_hub.errors import CheckpointError
from pcd_hub.train.configs.distill import DistillConfig, RunConfig
from pcd_hub.train.run_folder.checkpoints import Checkpoints
from pcd_hub.train.run_folder.folder import RunFolder
from tests.train.conftest import assert_same, run, trace

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def folder(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = DistillConfig(run=RunConfig(output_dir=tmp_path / "run", keep_checkpoints=1))
    yield RunFolder.open(Accelerator(cpu=True), config, default_name="test", inputs={"data": "x"})
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def checkpoints(folder):
    return Checkpoints(folder, folder._accelerator)


def test_the_random_state_goes_through_a_checkpoint(checkpoints):
    checkpoints.save(1, {}, {})
    drawn = torch.rand(3)
    checkpoints.load(total_steps=1)
    assert torch.equal(torch.rand(3), drawn)


def test_a_run_is_not_resumed_with_another_seed(folder, checkpoints):
    checkpoints.save(1, {}, {})
    config = DistillConfig(run=dataclasses.replace(folder.settings, seed=1))
    again = RunFolder(folder.path, folder._accelerator, config, inputs=folder.inputs)
    with pytest.raises(CheckpointError, match=r"written with another --run.seed \(0, now 1\)"):
        Checkpoints(again, folder._accelerator).load(total_steps=1)


def test_a_stream_is_resumed_only_by_as_many_processes(folder):
    two = Checkpoints(folder, SimpleNamespace(num_processes=2, process_index=1))  # type: ignore
    mine = {0: {"done": 3}}
    assert two.stream_states({"per_process": [{"stream": {}}, {"stream": mine}]}) == mine
    assert two.stream_states({"per_process": [{"stream": {}}]}) == {}, "no stream"
    with pytest.raises(CheckpointError, match="read by 1 processes, found 2; resume with 1 proc"):
        two.stream_states({"per_process": [{"stream": mine}]})


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def append(folder, _):
    folder.write_metrics(step=1)


def rewind(_, checkpoints):
    checkpoints.load(total_steps=2)


@pytest.mark.parametrize(("write", "fails"), [(append, "open"), (rewind, "write_bytes")])
def test_a_full_disk_between_checkpoints_is_reported(
    folder, checkpoints, monkeypatch, write, fails
):
    folder.write_metrics(step=0)
    checkpoints.save(1, {}, {})
    monkeypatch.setattr(Path, fails, full)
    monkeypatch.setattr("pcd_hub.train.run_folder.checkpoints.find_damage", lambda _: None)
    message = r"metrics.jsonl \(.*No space left .*\); the last checkpoint is step_00000001.pt; free"
    with pytest.raises(CheckpointError, match=f"cannot write .*{message} .* --(run.)?resume .*"):
        write(folder, checkpoints)


def test_a_full_disk_before_the_first_checkpoint_names_nothing_that_continues(folder, monkeypatch):
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CheckpointError, match="checkpoint is none; free .* start the run again"):
        folder.write_metrics(step=0)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_has_it_before_the_old_one_goes(
    folder, checkpoints, monkeypatch
):
    checkpoints.save(1, {}, {})
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
    checkpoints.save(2, {}, {})
    (new,) = folder.checkpoints.glob("*.pt")
    order = [
        ("fsync", new.stat().st_ino),
        ("replace", new.stat().st_ino),
        ("fsync", folder.checkpoints.stat().st_ino),
        ("unlink", "step_00000001.pt"),
    ]
    seen = [each for each in done if each in order]
    assert seen[-4:] == order, "before these, the folder with the sha256 is flushed"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no sum"])
def test_a_damaged_checkpoint_is_skipped_and_the_run_ends_the_same(tiny, tmp_path, damage, caplog):
    folder = run(tiny, tmp_path / "run", "--run.no-store")
    whole = trace(folder)
    first, last = sorted((folder / "checkpoints").glob("*.pt"))
    state = torch.load(last, weights_only=True)
    match damage:
        case "truncated":
            os.truncate(last, 1000)
        case "flipped":
            data = bytearray(last.read_bytes())
            data[len(data) // 2] ^= 1
            last.write_bytes(data)
        case "no sum":
            last.with_suffix(".pt.sha256").unlink()
    run(tiny, folder, "--run.no-store", "--run.resume")
    assert f"{last} is damaged" in caplog.text
    assert trace(folder) == whole
    assert_same(torch.load(last, weights_only=True), state)
    for path in (first, last):
        os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="has no undamaged checkpoint"):
        run(tiny, folder, "--run.no-store", "--run.resume")


def test_sha256sum_can_check_a_checkpoint(tiny, tmp_path):
    folder = run(tiny, tmp_path / "run", "--run.no-store", "--run.keep-checkpoints=1")
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step_00000006.pt", "step_00000006.pt.sha256"}
    checked = subprocess.run(
        ["sha256sum", "--check", "step_00000006.pt.sha256"],
        cwd=folder / "checkpoints",
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0
