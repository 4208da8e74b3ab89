"""What the derived settings depend on, and the settings of a run that is resumed."""

import dataclasses
import json

import pytest
from accelerate import Accelerator

from pcd_hub.report.run_report import Setting
from pcd_hub.train.configs.distill import DISTILL, DistillConfig
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.own_images.architectures import bytes_per_pixel, patch_size
from pcd_hub.train.own_images.records import DECISIONS, decision_table, read_decisions
from pcd_hub.train.own_images.settings import (
    Settings,
    as_started,
    find_settings,
    find_situation,
    set_length,
)
from pcd_hub.train.own_images.situation import Situation
from pcd_hub.train.own_images.started import length, started_settings, steps_done
from pcd_hub.weights import shipped


@pytest.mark.parametrize(
    ("architecture", "patch"),
    [("resnet18", 32), ("timm:vit_small_patch14_dinov2", 14), ("vit_tiny_patch16_224", 16)],
)
def test_image_sizes_are_multiples_of_the_patch(architecture, patch):
    assert patch_size(architecture) == patch


def test_the_memory_of_a_backward_pass_is_known_without_one():
    per_image = (bytes_per_pixel("resnet18") or 0) * 224**2
    assert 15e6 < per_image < 30e6
    assert (bytes_per_pixel("resnet50") or 0) > (bytes_per_pixel("resnet18") or 0)
    assert bytes_per_pixel("no_such_network") is None


def test_the_situation_follows_configuration_and_accelerator(tmp_path):
    config = with_fields(
        DISTILL["own_images"],
        {"teacher.source": f"local-dir:{tmp_path}", "student.arch": "vit_tiny_patch16_224"},
    )
    (tmp_path / "config.json").write_text('{"architecture": "vit_small_patch14_dinov2"}')
    config = with_fields(config, {"optim.global_batch_size": 64, "run.hours": 2.0})
    given = frozenset({"optim.global_batch_size", "optim.epochs"})
    found = find_situation(
        config, given, num_images=300, short_side=0, accelerator=Accelerator(cpu=True)
    )
    assert (found.device, found.num_devices, found.memory) == ("cpu", 1, None)
    assert (found.student_patch, found.teacher_patch) == (16, 14)
    assert found.hours == 2.0
    assert found.given == {"optim.global_batch_size": 64}, "hours replace the epochs"
    assert found.short_side > 1000, "unknown: no limit"
    assert not found.has_shipped_start
    assert not found.teacher_has_head
    config = with_fields(config, {"teacher.source": "swav_r50:FILE"})
    accelerator = Accelerator(cpu=True)
    found = find_situation(config, given, num_images=300, short_side=0, accelerator=accelerator)
    assert found.teacher_has_head


@pytest.mark.parametrize(
    ("changed", "has_one"),
    [
        ({"student.arch": "resnet18"}, True),
        ({"student.arch": "resnet18,mobilenetv4_conv_small"}, True),
        ({"student.arch": "resnet18,resnet34"}, False),
        ({"data.bands": ("red", "green", "blue", "nir")}, False),
    ],
)
def test_a_student_has_a_shipped_start_if_the_package_has_its_weight(changed, has_one):
    for arch in ("resnet18", "mobilenetv4_conv_small"):
        (shipped.FOLDER / f"{arch}.pcd").mkdir(parents=True)
    config = with_fields(DISTILL["own_images"], {"teacher.source": "timm:resnet18", **changed})
    found = find_situation(
        config, frozenset(), num_images=9, short_side=0, accelerator=Accelerator(cpu=True)
    )
    assert found.has_shipped_start == has_one


@pytest.mark.parametrize(
    ("changed", "weights"),
    [
        ({}, "shipped"),
        ({"student.arch": "resnet18,resnet34"}, "none"),
        ({"student.weights": "pretrained"}, "pretrained"),
    ],
)
def test_auto_is_the_shipped_weight_where_every_student_has_one(changed, weights, caplog):
    caplog.set_level("INFO", "pcd_hub")
    (shipped.FOLDER / "resnet18.pcd").mkdir(parents=True)
    config = with_fields(DISTILL["quickstart"], changed)
    found = find_settings(
        config,
        default_name="quickstart",
        given=frozenset(changed),
        num_images=9,
        short_side=0,
        accelerator=Accelerator(cpu=True),
    )
    assert found.config.student.weights == weights
    is_said = "pcd_hub ships no weight of resnet18,resnet34" in caplog.text
    assert is_said == (weights == "none")


def test_own_images_that_are_given_auto_derive_what_suits_the_start():
    (shipped.FOLDER / "resnet18.pcd").mkdir(parents=True)
    config = with_fields(DISTILL["own_images"], {"teacher.source": "timm:resnet18"})

    def derived(**changed):
        return find_settings(
            with_fields(config, changed),
            default_name="own_images",
            given=frozenset(changed),
            num_images=9,
            short_side=0,
            accelerator=Accelerator(cpu=True),
        ).config

    auto = {"student.weights": "auto"}
    assert derived(**auto) == derived()
    random = {"student.arch": "resnet34"}
    assert derived(**auto, **random) == derived(**random)


def test_the_measured_length_also_sets_the_steps_for_the_head_alone():
    situation = Situation(num_images=5000, short_side=480, has_shipped_start=True, hours=1.0)
    config = with_fields(DISTILL["own_images"], {"derive": False})
    settings = Settings(config=config, situation=situation, derives=True, needs_measurement=True)
    found = set_length(settings, 1.0, seconds_used=20.0)
    assert found.config.run.max_steps == 3400
    assert found.config.optim.head_only_share == found.length["optim.head_only_share"] == 0.0294


STARTED = {
    "optim.lr_per_256": 0.5,
    "method.queue_length": 9,
    "run.max_steps": 70,
    "teacher.source": "timm:chosen",
}


def test_a_resumed_run_keeps_what_was_derived_and_its_length():
    config = with_fields(DISTILL["own_images"], {"run.resume": True, "optim.lr_per_256": 0.1})
    found = as_started(config, frozenset({"optim.lr_per_256"}), STARTED)
    assert (found.optim.lr_per_256, found.method.queue_length, found.run.max_steps) == (0.1, 9, 70)
    assert not found.derive
    assert found.teacher.source == "timm:chosen"
    named = with_fields(config, {"teacher.source": "timm:named"})
    assert as_started(named, frozenset({"teacher.source"}), STARTED).teacher.source == "timm:named"
    longer = with_fields(config, {"run.max_steps": 90})
    assert as_started(longer, frozenset({"run.max_steps"}), STARTED).run.max_steps == 90
    only_hours = with_fields(DistillConfig(), {"run.resume": True, "run.hours": 1.0})
    found = as_started(only_hours, frozenset({"run.hours"}), STARTED)
    assert (found.optim.lr_per_256, found.run.max_steps, found.run.hours) == (1.0, 70, None)


def test_a_run_folder_tells_its_settings_and_steps(tmp_path):
    config = dataclasses.asdict(with_fields(DistillConfig(), {"run.max_steps": 5}))
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    assert started_settings(DistillConfig(), tmp_path)["run.max_steps"] == 5
    assert length(tmp_path) is None
    changes = [{"what": "--run.max-steps", "to": 7}, {"what": "--probe-scenes", "to": 1}]
    (tmp_path / "changes.json").write_text(json.dumps(changes))
    assert started_settings(DistillConfig(), tmp_path)["run.max_steps"] == length(tmp_path) == 7
    (tmp_path / "changes.json").write_text('[{"to": 3}]')
    assert length(tmp_path) is None
    assert steps_done(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    for name in ("step_00000010.pt", "step_00000020.pt", "step_x.pt", "step_00000030.damaged"):
        (tmp_path / "checkpoints" / name).touch()
    assert steps_done(tmp_path) == 20


def test_decisions_are_a_table_and_a_file(tmp_path):
    decisions = (
        Setting("optim.lr_per_256", 0.016, "a peak of 0.002 at batch 32"),
        Setting("data.image_size", (64, 96), "the images are 70 px small (median)"),
    )
    assert decision_table(decisions).splitlines() == [
        "  --optim.lr-per-256  0.016  a peak of 0.002 at batch 32",
        "  --data.image-size   64 96  the images are 70 px small (median)",
    ]
    written = [dataclasses.asdict(decision) for decision in decisions]
    (tmp_path / DECISIONS).write_text(json.dumps(written))
    assert read_decisions(tmp_path) == decisions
    assert read_decisions(tmp_path / "none") == ()
    (tmp_path / DECISIONS).write_text('[{"a": 1}]')
    assert read_decisions(tmp_path) == ()
