"""``pcd_hub.distill`` as a script or a notebook calls it."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

import pcd_hub
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.own_images.python import _interrupted, configure
from pcd_hub.train.signals import StoppedRun
from pcd_hub.weights import shipped, store
from pcd_hub.weights.average import average
from tests.evaluate.drawn_sets import draw_segmentation
from tests.weights.making import exported, flip


@pytest.fixture
def settings(tiny) -> dict:
    """Return the arguments of a run that takes seconds."""
    pairs = (argument.removeprefix("--").split("=", 1) for argument in tiny)
    named = {key.replace("-", "_"): yaml.safe_load(value) for key, value in pairs}
    named.pop("teacher.image_size")
    return {
        "images": named.pop("data.source"),
        "student": named.pop("student.arch"),
        "teacher": {"source": named.pop("teacher.source"), "image_size": None},
        **named,
    }


def test_the_result_has_weight_metrics_report_and_model(settings, tmp_path):
    random, handlers = torch.get_rng_state(), [signal.getsignal(s) for s in (2, 15)]
    done = pcd_hub.distill(**settings, output_dir=tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), random)
    assert [signal.getsignal(s) for s in (2, 15)] == handlers
    assert done.folder == tmp_path / "run"
    assert done.report.read_text().startswith("# test_resnet.pcd_own_images: report of the run")
    assert done.metrics == json.loads((done.folder / "record.json").read_text())["metrics"]
    stages = done.model(features_only=True)(torch.zeros(1, 3, 64, 64))
    assert stages[-1].shape == (1, 96, 2, 2)
    own, timms = done.model(), timm.create_model(done.weight, pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), timms.parameters(), strict=True))
    stored = sorted(store.home().glob(".versions/*/*"))
    again = pcd_hub.distill(resume=done.folder)
    assert again == done, "it has finished: its export is not repeated"
    (done.folder / "record.json").unlink()  # killed before it was written
    (done.folder / "report.html").unlink()
    assert pcd_hub.distill(resume=done.folder) == done
    assert (done.folder / "record.json").is_file()
    assert (done.folder / "report.html").is_file()
    assert sorted(store.home().glob(".versions/*/*")) == stored


def test_a_damaged_export_is_made_again_and_a_later_weight_keeps_its_name(
    settings, tmp_path, capsys
):
    first = pcd_hub.distill(**settings, output_dir=tmp_path / "first")
    pcd_hub.distill(**settings, output_dir=tmp_path / "second")
    (name,) = store.names()
    later = store.where(name)
    pcd_hub.distill(resume=first.folder)
    assert store.where(name) == later
    assert f"{name} is a later weight; `pcd-hub add {first.folder}" in capsys.readouterr().out
    flip(first.folder / "export" / "model.safetensors")
    assert pcd_hub.distill(resume=first.folder).weight.endswith("first/export-2")


def test_a_student_starts_from_the_shipped_weight_and_is_averaged_with_it(settings, tmp_path):
    start = timm.create_model("test_resnet", num_classes=0)
    exported(shipped.FOLDER / "test_resnet.pcd", model=start)
    done = pcd_hub.distill(**settings, output_dir=tmp_path / "run")
    record = json.loads((done.folder / "record.json").read_text())
    assert (record["start"]["source"], record["start"]["name"]) == ("shipped", "test_resnet.pcd")
    assert record["config"]["student"]["weights"] == "shipped"
    assert "start (test_resnet.pcd)" in done.report.read_text()
    mean = pcd_hub.create_model(average(done.folder, "shipped").name).state_dict()
    expected = (
        done.model().state_dict()["conv1.0.weight"] + start.state_dict()["conv1.0.weight"]
    ) / 2
    torch.testing.assert_close(mean["conv1.0.weight"], expected)


TWICE = """
import json, logging, sys
from accelerate import Accelerator
import pcd_hub

settings = json.loads(sys.argv[1])
own = Accelerator(cpu=True, mixed_precision="no")
for precision in ("bf16", "fp32"):
    settings["speed.precision"] = precision
    pcd_hub.distill(**settings, output_dir=f"run_{precision}")
assert own.mixed_precision == "no" and own.device.type == "cpu"
assert not logging.getLogger().handlers and not logging.getLogger("pcd_hub").handlers
"""


def test_it_runs_twice_in_a_process_that_has_an_accelerator(settings, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWICE, json.dumps(settings)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for precision in ("bf16", "fp32"):
        assert done.stderr.count(f"6 steps, results in run_{precision}\n") == 1
        config = json.loads((tmp_path / f"run_{precision}" / "config.json").read_text())
        assert config["speed"]["precision"] == precision


INTERRUPTED = """
import json, signal, sys
import pcd_hub

settings = json.loads(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    pcd_hub.distill(**settings | {"run.max_steps": 100_000}, output_dir="run")
except KeyboardInterrupt as stopped:
    shown = stopped  # as a notebook keeps it
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(shown, flush=True)
pcd_hub.distill(resume="run", **{"run.max_steps": int(input())})
"""


def test_an_interrupt_saves_the_run_and_says_how_to_continue(settings, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stdin
        assert process.stdout
        said = process.stdout.readline()
        assert said.startswith("stopped by SIGINT after step "), process.communicate()[1]
        assert 'which is saved; continue with pcd_hub.distill(resume="run")' in said
        with (tmp_path / "run" / "config.json").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process has released it
        steps = int(said.split("step ")[1].split(",")[0]) + 2
        _, errors = process.communicate(f"{steps}\n", timeout=120)
        assert process.returncode == 0, errors
    finally:
        process.kill()
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == steps - 1
    assert (tmp_path / "run" / "report.md").is_file()


def test_a_mistake_leaves_no_trace_of_the_run(settings, tmp_path):
    with pytest.raises(DataError, match="no folder /no/such") as caught:
        pcd_hub.distill(**settings | {"images": "/no/such"}, output_dir=tmp_path / "run")
    functions = [entry.name for entry in caught.traceback]
    assert functions[1:] == ["distill"], "a traceback would keep the memory of the run"
    assert not (tmp_path / "run").exists()


def test_a_module_is_a_teacher_with_its_normalisation(settings, tmp_path):
    settings |= {"teacher": timm.create_model("test_resnet", num_classes=0), "run.max_steps": 2}
    with pytest.raises(ConfigError, match="a teacher that is a module needs mean=... and std="):
        pcd_hub.distill(**settings, output_dir=tmp_path / "run")
    half = (0.5, 0.5, 0.5)
    done = pcd_hub.distill(**settings, mean=half, std=half, output_dir=tmp_path / "run")
    record = json.loads((done.folder / "record.json").read_text())
    assert record["teacher"]["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(ConfigError, match="mean and std belong to a teacher that is a module"):
        pcd_hub.distill("photos", teacher="quickstart", mean=half)


def test_a_module_of_one_size_gets_its_size(settings, tmp_path):
    teacher = timm.create_model("test_vit", num_classes=0, dynamic_img_size=False)  # of 160 px
    settings |= {"teacher": teacher, "run.max_steps": 2, "derive": True, "probe_scenes": 0}
    half = (0.5, 0.5, 0.5)
    done = pcd_hub.distill(**settings, mean=half, std=half, output_dir=tmp_path / "run")
    record = json.loads((done.folder / "record.json").read_text())
    assert record["config"]["teacher"]["image_size"] == 160


def call(images: Any = "photos", **arguments: Any):
    models = {name: arguments.pop(name, "quickstart") for name in ("student", "teacher")}
    models["probe_data"] = arguments.pop("probe_data", None)
    run = {name: arguments.pop(name, None) for name in ("output_dir", "hours")}
    _, config, given = configure(images, models, run, arguments)
    return config, given


@pytest.mark.parametrize("given", ["labelled", Path("labelled"), {"source": "labelled"}])
def test_labelled_images_are_given_by_name_or_by_group(given):
    config, fields = call(probe_data=given)
    assert config.probe_data.source == "labelled"
    assert "probe_data.source" in fields


def test_the_metrics_have_the_mean_iou_on_labelled_images(settings, tmp_path):
    labelled = draw_segmentation(tmp_path / "labelled")
    settings |= {"run.max_steps": 2, "probe_data": labelled}
    done = pcd_hub.distill(**settings, output_dir=tmp_path / "run")
    assert done.metrics["probe_data"]["metric"] == "mean IoU"
    assert "distilled student" in done.metrics["probe_data"]["means"]


def test_fields_are_given_by_group_or_by_dotted_name():
    config, given = call(
        student="resnet34",
        teacher={"source": "timm:x", "image_size": 64},
        hours=2,
        optim={"epochs": 3, "lr_per_256": 1},
        **{"data.gray_probability": 0},
    )
    assert (config.student.arch, config.teacher.source) == ("resnet34", "timm:x")
    assert (config.teacher.image_size, config.run.hours) == (64, 2.0)
    assert (config.optim.epochs, config.optim.lr_per_256) == (3, 1.0)
    assert config.data.gray_probability == 0
    assert config.derive
    assert given == {
        *("student.arch", "teacher.source", "teacher.image_size", "data.source", "run.hours"),
        *("optim.epochs", "optim.lr_per_256", "data.gray_probability"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 3}, "unknown field 'epochs'; did you mean 'optim.epochs'?"),
        ({"lr": 3}, "unknown field 'lr'; did you mean 'optim.lr_per_256'?"),
        ({"optim": {"epoch": 3}}, "unknown field 'optim.epoch'; did you mean 'optim.epochs'?"),
        ({"optim": {"epochs": 0}}, "optim.epochs 0: expected an integer from 1"),
        ({"hours": -1}, "run.hours -1: expected a finite number > 0"),
        ({"hours": 1, "run": {"hours": 2}}, "run.hours is given twice, expected once"),
        ({"images": []}, "no images are given"),
        ({"optim": 3}, "optim 3: expected a group of fields"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message):
    with pytest.raises(ConfigError) as refused:
        call(**arguments)
    assert str(refused.value).startswith(f"pcd_hub.distill: {message}")


def test_the_call_after_an_interrupt_names_the_module():
    stopped = StoppedRun(signal.SIGINT, Path("run"), step=3)
    said = str(_interrupted(stopped, is_module=True))
    assert 'pcd_hub.distill(resume="run", teacher=module, mean=..., std=...)' in said


def test_a_module_teaches(settings, tmp_path):
    module = timm.create_model("test_resnet", num_classes=0)
    teacher = pcd_hub.teacher_from_module(module, mean=(0.5,) * 3, std=(0.5,) * 3, name="mine")
    done = pcd_hub.distill(**settings | {"teacher": teacher}, output_dir=tmp_path / "run")
    record = json.loads((done.folder / "record.json").read_text())
    assert record["teacher"]["source"] == "module:mine"
    assert record["teacher"]["sha256"] == teacher.facts.sha256
    assert record["recipe"] == "pcd_hub.distill(teacher=module)"
