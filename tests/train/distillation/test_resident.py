"""Runs whose images stay in memory, and when they do."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.sources.open import open_source
from pcd_hub.errors import ConfigError
from pcd_hub.train import distill
from pcd_hub.train.configs.distill import DISTILL, DistillDataConfig
from pcd_hub.train.configs.fields import check
from pcd_hub.train.distillation import resident
from pcd_hub.train.distillation.resident import resolve_resident
from tests.train.conftest import run, trace

pytestmark = pytest.mark.usefixtures("no_pictures")

PLAN = BatchPlan(global_batch_size=8, total_steps=100)
ON = DistillDataConfig(image_size=24, min_crop_area=0.2, resident="on")
AUTO = dataclasses.replace(ON, resident="auto")


def resolved(data, plan=PLAN, device="cpu"):
    accelerator: Any = SimpleNamespace(
        device=torch.device(device), is_main_process=True, num_processes=1
    )
    return resolve_resident(
        data, source=open_source("scenes:64"), plan=plan, accelerator=accelerator
    )


@pytest.fixture(autouse=True)
def free(monkeypatch):
    def set_free(count):
        monkeypatch.setattr(resident, "free_bytes", lambda _: count)

    set_free(10**9)
    return set_free


def test_the_side_follows_from_the_views():
    found = resolved(ON)
    assert (found.resident, found.resident_side) == ("on", 44)
    assert resolved(dataclasses.replace(ON, resident_side=50)).resident_side == 50
    off = dataclasses.replace(ON, resident="off")
    assert resolved(off) == off


def test_auto_keeps_images_that_fit_into_a_quarter_of_the_free_memory(free, caplog):
    caplog.set_level("INFO", logger="pcd_hub")
    needed = 64 * 3 * 44 * 44
    free(4 * needed)
    assert resolved(AUTO, device="cuda").resident == "on"
    assert "64 images stay in the memory of CUDA, with a short side of at most 44" in caplog.text
    free(4 * needed - 4)
    off = dataclasses.replace(AUTO, resident="off")
    assert resolved(AUTO, device="cuda") == off
    assert "need 0.00037 GB, expected at most 25% of the 0.0015 GB" in caplog.text
    assert resolved(ON, device="cuda").resident == "on", "asked for"
    free(needed)
    with pytest.raises(ConfigError, match="resident on: 64 images with a short side of 44 px need"):
        resolved(ON, device="cuda")
    free(None)
    assert resolved(ON, device="cuda").resident == "on", "unknown"


def test_images_too_large_for_the_gpu_stay_in_host_memory_if_asked_for(monkeypatch, caplog):
    caplog.set_level("INFO", logger="pcd_hub")
    needed = 64 * 3 * 44 * 44
    memory = {"cuda": needed, "cpu": 2 * needed}
    monkeypatch.setattr(resident, "free_bytes", lambda device: memory[device.type])
    assert resolved(ON, device="cuda").resident == "on"
    assert "64 images stay in the memory of CPU, with a short side" in caplog.text
    assert resolved(AUTO, device="cuda").resident == "off"
    memory["cpu"] = needed
    with pytest.raises(ConfigError, match="expected at most 90% of the 0.00037 GB of memory"):
        resolved(ON, device="cuda")


def test_auto_reads_images_that_are_hardly_seen_twice(caplog):
    caplog.set_level("INFO", logger="pcd_hub")
    for steps, expected in ((15, "off"), (16, "on")):
        plan = dataclasses.replace(PLAN, total_steps=steps)
        assert resolved(AUTO, plan=plan, device="cuda").resident == expected
        assert resolved(ON, plan=plan, device="cuda").resident == "on"
    assert "the run sees each of them 1.9 times" in caplog.text


def test_images_stay_where_it_pays_and_where_views_can_be_rendered(free, caplog):
    caplog.set_level("INFO", logger="pcd_hub")
    assert resolved(AUTO).resident == "off"
    assert "on a CPU, decoding is a small part of a step" in caplog.text
    assert resolved(AUTO, device="mps").resident == "off"
    with pytest.raises(ConfigError, match="the device is mps; expected one of cuda, cpu"):
        resolved(ON, device="mps")


class Stream:
    num_parts = 1

    def read(self, *, state):
        yield from ()

    def fingerprint(self):
        return "stream"


def test_a_stream_does_not_stay(caplog):
    accelerator = Accelerator(cpu=True)
    caplog.set_level("INFO", logger="pcd_hub")
    found = resolve_resident(AUTO, source=Stream(), plan=PLAN, accelerator=accelerator)
    assert found.resident == "off"
    assert "a stream is read in order" in caplog.text
    with pytest.raises(ConfigError, match="--data.resident on: a stream is read in order"):
        resolve_resident(ON, source=Stream(), plan=PLAN, accelerator=accelerator)


def test_settings_that_contradict_each_other():
    with pytest.raises(ConfigError, match="--data.resident-side 50: --data.resident is off"):
        check(dataclasses.replace(DISTILL["quickstart"], data=_data("off", resident_side=50)))
    check(dataclasses.replace(DISTILL["quickstart"], data=_data(resident_side=50)))


def _data(which="on", **fields):
    return dataclasses.replace(DISTILL["quickstart"].data, resident=which, **fields)


def test_images_of_full_size_train_as_those_of_files(tiny, tmp_path):
    """In host memory the loader's own functions render, so nothing changes."""
    from_files = run(tiny, tmp_path / "files")
    options = ["--data.resident=on", "--data.resident-side=4096", "--data.num-workers=1"]
    folder = run(tiny, tmp_path / "resident", *options)
    assert trace(folder) == trace(from_files)
    config = json.loads((folder / "config.json").read_text())
    assert (config["data"]["resident"], config["data"]["resident_side"]) == ("on", 4096)
    assert (folder / "pictures" / "views.png").exists()


def test_a_run_resumes_bit_equal(tiny, tmp_path):
    arguments = [*tiny, "--data.resident=on", f"--run.output-dir={tmp_path / 'run'}"]
    distill.main(arguments)
    whole = trace(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "step_00000006.pt"
    student = torch.load(last, weights_only=True)["distiller"]
    last.unlink()
    distill.main([*arguments, "--run.resume"])
    assert trace(tmp_path / "run") == whole
    again = torch.load(last, weights_only=True)["distiller"]
    assert all(torch.equal(value, again[name]) for name, value in student.items())


def test_a_run_may_go_on_without(tiny, tmp_path):
    arguments = [*tiny, f"--run.output-dir={tmp_path / 'run'}"]
    distill.main([*arguments, "--data.resident=on"])
    distill.main([*arguments, "--run.resume", "--run.max-steps=7"])
    changes = json.loads((tmp_path / "run" / "changes.json").read_text())
    assert {change["what"] for change in changes} == {
        *("--data.resident", "--data.resident-side", "--run.max-steps")
    }
