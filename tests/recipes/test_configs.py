"""The files in recipes/configs are read, and say what they promise."""

from pathlib import Path

import pytest
import yaml

from pcd_hub.train.configs.files import plain
from pcd_hub.train.configs.flat import flat
from pcd_hub.train.lab.options import parse_lab
from pcd_hub.train.lab.plan import read_plan
from pcd_hub.train.own_images.arguments import parse_distill
from pcd_hub.weights.load import read_weight

FOLDER = Path(__file__).parents[2] / "recipes" / "configs"
LISTS = sorted(FOLDER.glob("lab_*.yaml"))
CONFIGS = sorted({*FOLDER.glob("*.yaml")} - {*LISTS})


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_a_list_of_runs_is_valid(file):
    plan = read_plan(file, parse_lab([str(file), "--images=photos", "--teacher=timm:x"])[0])
    assert len(plan.seeds) >= 3
    assert {row.distilled.teacher.source for row in plan.rows if row.distilled} == {"timm:x"}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_configuration_is_complete_with_images_and_teacher(file, tmp_path):
    given = ["--teacher=timm:x", "--config", str(file)]
    _, config, _ = parse_distill([str(tmp_path), *given])
    assert not config.derive
    assert parse_distill([f"--data.source={tmp_path}", *given]).config == config, "with any base"


def shipped_record(name):
    return read_weight(FOLDER.parents[1] / "pcd_hub/weights/shipped" / name).record


def test_resnet18_photos_continued_has_the_settings_of_the_shipped_resnet18():
    file = FOLDER / "resnet18_photos_continued.yaml"
    written, made = (
        flat(yaml.safe_load(file.read_text())),
        flat(shipped_record("resnet18.pcd").config),
    )
    others = {"derive", "probe_scenes", "student.weights", "run.name"}
    assert {name: made[name] for name in written.keys() - others} == {
        name: written[name] for name in written.keys() - others
    }
    assert shipped_record("resnet18.pcd").steps == written["run.max_steps"]


def test_students_photos_gpu_has_the_settings_of_the_other_shipped_weight():
    config = parse_distill(["--config", str(FOLDER / "students_photos_gpu.yaml")]).config
    found = flat(plain(config))
    expected = {
        "teacher.image_size": 192,
        "student.arch": "resnet18,mobilenetv4_conv_small",
        "data.image_size": 96,
        "data.min_crop_area": 0.2,
        "data.resident": "on",
        "method.loss": "pixel_info_nce",
        "method.queue_length": 128,
        "method.head": "linear",
        "optim.name": "adamw",
        "optim.lr_per_256": 0.004,
        "optim.weight_decay": 0.05,
        "optim.global_batch_size": 256,
        "optim.warmup_share": 0.05,
        "run.max_steps": 3636,
    }
    assert {name: found[name] for name in expected} == expected
    record = shipped_record("mobilenetv4_conv_small.pcd")
    assert record.steps == found["run.max_steps"]
    assert record.images_seen == record.steps * found["optim.global_batch_size"]
