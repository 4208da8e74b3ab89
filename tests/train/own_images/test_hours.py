"""A run whose settings and length are derived: measured, recorded, resumed, made longer."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pcd_hub.data.views import EarlyViews
from pcd_hub.errors import CheckpointError, ConfigError, PCDHubError
from pcd_hub.train import distill
from pcd_hub.train.own_images import timing
from tests.train.conftest import run, trace

pytestmark = pytest.mark.usefixtures("no_pictures")

SECONDS = 300.0
"""Pretended duration of a step: an hour is 11 steps."""
SMALL = ("--hours=1", "--data.image-size=64", "--optim.global-batch-size=8")
LENGTHS = ("--run.max-steps", "--run.log-every", "--run.checkpoint-every")


@pytest.fixture
def of_hours(tiny) -> list[str]:
    """Return the arguments of a tiny run without its length and intervals."""
    return [argument for argument in tiny if not argument.startswith(LENGTHS)]


@pytest.fixture
def own_images(of_hours) -> list[str]:
    """Return the arguments of a run with few given settings."""
    names = ("--teacher.source", "--student.arch", "--data.source", "--data.num-workers")
    kept = [argument for argument in of_hours if argument.startswith((*names, "--speed"))]
    return ["own_images", *kept]


@pytest.fixture(autouse=True)
def slow_step(monkeypatch):
    """Measure, and pretend that a step takes long: the result does not depend on the machine."""
    measure = distill.seconds_per_step

    def measured(d: Any) -> float:
        assert 0 < measure(d) < SECONDS
        return SECONDS

    monkeypatch.setattr(distill, "seconds_per_step", measured)
    monkeypatch.setattr(timing, "SECONDS", 0.0)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def steps_of(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_the_measurement_leaves_no_trace(of_hours, tmp_path):
    intervals = ["--run.log-every-steps=1", "--run.checkpoint-every-steps=5"]
    run([*of_hours, *intervals], tmp_path / "measured", "--run.hours=1")
    run([*of_hours, *intervals], tmp_path / "counted", "--run.max-steps=11")
    assert trace(tmp_path / "measured") == trace(tmp_path / "counted")
    assert config_of(tmp_path / "measured") == config_of(tmp_path / "counted")
    last = [
        torch.load(tmp_path / name / "checkpoints" / "step_00000011.pt", weights_only=True)
        for name in ("measured", "counted")
    ]
    for name in ("distiller", "queue"):
        for key, value in last[0][name].items():
            assert torch.equal(value, last[1][name][key]), key
    assert torch.equal(*(one["per_process"][0]["rng"]["cpu"] for one in last))


@pytest.fixture
def derived(own_images, tmp_path, caplog) -> Path:
    """A finished run of own_images."""
    with caplog.at_level(logging.INFO, "pcd_hub"):
        run(own_images, tmp_path / "run", *SMALL)
    return tmp_path / "run"


def test_settings_are_derived_printed_and_recorded(derived, caplog):
    config = config_of(derived)
    assert config["run"]["max_steps"] == 11
    assert config["run"]["checkpoint_every_steps"] == 1
    assert (config["derive"], config["run"]["hours"]) == (False, None)
    assert config["data"]["image_size"] == 64, "given"
    assert (config["teacher"]["image_size"], config["method"]["feature_maps"]) == (128, 2)
    assert config["optim"]["name"] == "muon"
    decisions = {one["option"]: one for one in json.loads((derived / "decisions.json").read_text())}
    assert decisions["run.max_steps"]["reason"] == "1 h at 300 s a step"
    assert "data.image_size" not in decisions
    for option, decision in decisions.items():
        group, _, name = option.rpartition(".")
        assert config[group][name] == decision["value"], option
    printed = "\n".join(record.getMessage() for record in caplog.get_records("setup"))
    assert "\n  --run.max-steps               11      1 h at 300 s a step" in printed
    survey = json.loads((derived / "survey.json").read_text())
    assert (survey["num_images"], survey["short_side"]) == (64, 96)
    assert "64 images, short side 96 px" in printed
    record = json.loads((derived / "record.json").read_text())
    assert record["recipe"] == "pcd-hub distill --config config.json"
    assert record["config"] == config


def test_the_same_command_resumes_without_a_measurement(derived, own_images, monkeypatch):
    for file in (derived / "checkpoints").glob("step_00000011.pt*"):
        file.unlink()
    monkeypatch.setattr(distill, "seconds_per_step", lambda _: pytest.fail("measured again"))
    before = (derived / "decisions.json").read_text()
    run(own_images, derived, *SMALL, "--run.resume")
    assert steps_of(derived) == list(range(11))
    assert not (derived / "changes.json").exists()
    assert (derived / "decisions.json").read_text() == before


def test_a_resumption_that_is_refused_keeps_the_reasons_of_the_start(derived):
    before = (derived / "decisions.json").read_text()
    with pytest.raises(CheckpointError, match="written with another --data.min-crop-area"):
        distill.main(["--resume", str(derived), "--data.min-crop-area=0.9"])
    assert (derived / "decisions.json").read_text() == before


def test_small_views_are_measured_and_kept_by_a_resumed_run(own_images, tmp_path, monkeypatch):
    sizes = []
    open_batches = distill.open_batches

    def opened(source, data, *args, **options):
        sizes.append((data.image_size, options.get("early")))
        return open_batches(source, data, *args, **options)

    monkeypatch.setattr(distill, "open_batches", opened)
    early_views = ("--data.early-image-size=32", "--data.early-share=0.5")
    folder = run(own_images, tmp_path / "run", *SMALL, *early_views)
    early = EarlyViews(image_size=32, steps=6)
    assert sizes == [(64, None), (32, None), (64, early)], "two measurements, then the run"
    whole, settings = trace(folder), config_of(folder)
    assert (settings["data"]["early_image_size"], settings["data"]["early_share"]) == (32, 0.5)
    assert settings["run"]["max_steps"] == 11
    for file in (folder / "checkpoints").glob("step_00000011.pt*"):
        file.unlink()
    run(own_images, folder, *SMALL, *early_views, "--run.resume")
    assert trace(folder) == whole
    assert sizes[3:] == [(64, early)]


def test_hours_are_added_to_a_finished_run(derived, tmp_path):
    export = {p.name: p.read_bytes() for p in (derived / "export").iterdir() if p.is_file()}
    distill.main(["--resume", str(derived), "--hours", "1", "--run.checkpoint-every-steps=2"])
    assert steps_of(derived) == list(range(22))
    changes = json.loads((derived / "changes.json").read_text())
    assert {one["what"]: (one["from"], one["to"]) for one in changes} == {
        "--run.max-steps": (11, 22),
        "--run.checkpoint-every-steps": (1, 2),
    }
    assert export == {p.name: p.read_bytes() for p in (derived / "export").iterdir() if p.is_file()}
    assert (derived / "export-2" / "model.safetensors").exists()
    decisions = json.loads((derived / "decisions.json").read_text())
    assert decisions[-1]["reason"] == "11 + 1 h at 300 s a step"
    options = [one["option"] for one in decisions]
    assert options.count("run.max_steps") == 1
    assert "run.log_every_steps" in options
    assert "run.checkpoint_every_steps" not in options, "given"

    # That run, interrupted: it keeps its new length. Then with another one.
    for file in (derived / "checkpoints").glob("step_00000022.pt*"):
        file.unlink()
    distill.main(["--resume", str(derived)])
    assert steps_of(derived) == list(range(22))
    distill.main(["--resume", str(derived), "--run.max-steps=23", "--run.keep-checkpoints=1"])
    assert steps_of(derived) == list(range(23))
    assert len([*(derived / "checkpoints").glob("step_*.pt")]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--hours=0.01", SMALL[-1]],
            r"^--run.hours 0.01: expected at least 0.9\d; a step takes 300 s, the start took \d+",
        ),
        (["--data.source=scenes:3"], "has 3 images: expected at least 8"),
        (
            ["--data.source=scenes:12", "--optim.global-batch-size=16"],
            "has 12 images to train on, fewer than one batch of 16; lower",
        ),
        (["--data.source="], "no images are given"),
        (["--run.add-hours=1"], "--run.add-hours 1.0 is for a run that is resumed; use --resume"),
        (["--hours=1", "--run.max-steps=3"], "both set the length"),
        (["--run.resume"], "contains no run"),
    ],
)
def test_mistakes_are_one_line_before_the_folder_is_made(own_images, tmp_path, options, message):
    with pytest.raises(PCDHubError, match=message) as error:
        run(own_images, tmp_path / "run", *options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_hours_that_are_too_short_leave_a_run_as_it_was(derived, tmp_path):
    copied = shutil.copytree(derived, tmp_path / "copied")
    with pytest.raises(ConfigError, match=r"^--run.add-hours 0.01: expected at least"):
        distill.main(["--resume", str(derived), "--hours=0.01"])
    for path in copied.rglob("*.json*"):
        assert path.read_bytes() == (derived / path.relative_to(copied)).read_bytes()


def test_the_few_images_of_a_small_folder_are_enough(own_images, tmp_path):
    run(own_images, tmp_path / "run", "--data.source=scenes:8", "--hours=1")
    config = config_of(tmp_path / "run")
    assert config["optim"]["global_batch_size"] == 8
    assert config["method"]["queue_length"] == 4


def test_a_printed_configuration_still_derives(capsys, own_images, tmp_path):
    with pytest.raises(SystemExit):
        distill.main([*own_images, "--optim.weight-decay=0.1", SMALL[-1], "--print-config"])
    file = tmp_path / "own.yaml"
    file.write_text(capsys.readouterr().out)
    assert "lr_per_256" not in file.read_text()
    run([f"--config={file}"], tmp_path / "run", "--hours=1")
    config = config_of(tmp_path / "run")
    assert (config["optim"]["name"], config["optim"]["weight_decay"]) == ("muon", 0.1)
