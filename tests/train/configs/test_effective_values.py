"""What a run records are the values in use, and they configure the same run."""

import json
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.errors import CheckpointError
from pcd_hub.method.heads import STUDENT_HEADS
from pcd_hub.train import distill
from pcd_hub.train.batches import resolve_run
from pcd_hub.train.configs.contrast import ContrastConfig
from pcd_hub.train.configs.detection import DetectConfig
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.configs.files import recorded
from pcd_hub.train.configs.linear_classification import LinearClsConfig
from pcd_hub.train.configs.method import PixelMethodConfig, resolve_method
from pcd_hub.train.configs.segmentation import FinetuneSegConfig
from pcd_hub.train.run_folder.resume import changed_settings

pytestmark = pytest.mark.usefixtures("no_pictures")

DEFAULTS = [
    "--teacher.image-size=match",
    "--method.temperature=None",
    "--method.queue-length=65536",
    "--method.head-width=None",
    "--method.head=swav",
    "--data.num-workers=None",
    "--speed.precision=auto",
    "--run.no-store",
]


def losses(folder) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(autouse=True)
def own_precision():
    """A process reads its precision once, and other tests have another one."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run of one epoch of 8 steps that leaves every default to the recipe."""
    AcceleratorState._reset_state()
    folder = tmp_path_factory.mktemp("effective") / "run"
    arguments = [argument for argument in tiny if not argument.startswith("--run.max-steps")]
    arguments = [*arguments, *DEFAULTS, "--optim.epochs=1", f"--run.output-dir={folder}"]
    distill.main(arguments)
    return folder


def test_a_run_records_the_values_in_use(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["teacher"]["image_size"] == 32
    assert config["method"]["temperature"] == 0.2
    assert config["method"]["queue_length"] == 32, "half of 64 images"
    assert config["method"]["head_width"] == 2048
    assert config["data"]["num_workers"] == 1
    assert config["speed"]["precision"] in {"fp32", "bf16"}
    assert config["speed"]["compile"] is False
    assert config["run"]["max_steps"] == 8
    record = json.loads((finished / "record.json").read_text())
    checkpoint = torch.load(next((finished / "checkpoints").glob("*08.pt")), weights_only=True)
    assert config == record["config"] == checkpoint["config"]
    unknown = {
        f"{group}.{name}"
        for group, fields in config.items()
        if isinstance(fields, dict)
        for name, value in fields.items()
        if value is None
    }
    replaced = {"run.hours", "run.add_hours"}  # by max-steps
    # without held-out images, smaller first views and resident images
    unused = {"run.measure_every_steps", "data.early_image_size", "data.resident_side"}
    unused |= {"probe_data.num_classes", "probe_data.image_size"}  # without labelled images
    meaningful = {"optim.clip_grad_norm"}  # no clipping
    assert unknown - replaced - unused == meaningful


def test_the_recorded_configuration_configures_the_same_run(finished, tmp_path):
    distill.main([f"--config={finished / 'config.json'}", f"--run.output-dir={tmp_path / 'run'}"])
    assert losses(tmp_path / "run") == losses(finished)
    again = (tmp_path / "run" / "config.json").read_text()
    assert again == (finished / "config.json").read_text()
    recipe = json.loads((tmp_path / "run" / "record.json").read_text())["recipe"]
    assert recipe == "pcd-hub distill --config config.json", "run is no named configuration"


@pytest.mark.parametrize(
    ("loss", "temperature", "queue_length"),
    [
        ("pixel_info_nce", 0.2, 50),
        ("similarity_kl", 0.07, 65536),
        ("cosine_smooth_l1", None, 65536),
    ],
)
def test_temperature_and_queue_follow_the_loss(loss, temperature, queue_length):
    method = resolve_method(PixelMethodConfig(loss=loss), num_images=100)
    assert (method.temperature, method.queue_length) == (temperature, queue_length)
    assert resolve_method(method, num_images=100) == method


def test_the_queue_of_a_stream_is_not_capped():
    assert resolve_method(PixelMethodConfig(), num_images=None).queue_length == 65536
    assert resolve_method(PixelMethodConfig(), num_images=1).queue_length == 1


@pytest.mark.parametrize("head", STUDENT_HEADS)
def test_every_head_has_one_hidden_width(head):
    widths = {width for *hidden, _ in STUDENT_HEADS[head].mlps for width in hidden}
    assert len(widths) <= 1
    method = resolve_method(PixelMethodConfig(head=head), num_images=None)
    assert method.head_width == next(iter(widths), None)
    given = resolve_method(PixelMethodConfig(head=head, head_width=24), num_images=None)
    assert given.head_width == 24


@pytest.mark.parametrize(
    "config",
    [DistillConfig(), ContrastConfig(), DetectConfig(), FinetuneSegConfig(), LinearClsConfig()],
    ids=lambda config: type(config).__name__,
)
def test_steps_and_loader_processes_are_recorded(config):
    plan = BatchPlan(global_batch_size=4, total_steps=7, seed=0)
    resolved = recorded(resolve_run(config, plan, torch.device("cpu")))
    assert (resolved["run"]["max_steps"], resolved["data"]["num_workers"]) == (7, 1)


def changed(old: dict[str, Any], new: dict[str, Any], requested: dict[str, Any]) -> list[Any]:
    return changed_settings(old, new, requested=requested, step=5)


def test_a_requested_default_is_no_change():
    requested = {"method": {"temperature": None}, "speed": {"precision": "auto"}}
    new = {"method": {"temperature": 0.2}, "speed": {"precision": "bf16"}}
    assert changed(requested, new, requested) == changed(new, new, requested) == []


def test_a_default_that_has_become_another_value_is_a_change():
    """As with a run from a GPU, resumed on a CPU."""
    requested: dict[str, Any] = {"speed": {"precision": "auto"}, "data": {"num_workers": None}}
    new = {"speed": {"precision": "fp32"}, "data": {"num_workers": 1}}
    old = {"speed": {"precision": "bf16"}, "data": {"num_workers": 16}}
    found = {
        change["what"]: (change["from"], change["to"]) for change in changed(old, new, requested)
    }
    assert found == {"--speed.precision": ("bf16", "fp32"), "--data.num-workers": (16, 1)}
    with pytest.raises(CheckpointError, match=r"another --method.temperature \(0.1, now 0.2\)"):
        changed(
            {"method": {"temperature": 0.1}},
            {"method": {"temperature": 0.2}},
            {"method": {"temperature": None}},
        )


def test_removed_fields_are_no_change():
    new = recorded(DistillConfig())
    old = json.loads(json.dumps(new))
    old["data"]["renderer"] = "opencv"
    assert changed(old, new, new) == []
    old["data"]["renderer"] = "pillow"
    with pytest.raises(CheckpointError, match="another --data.renderer"):
        changed(old, new, new)


def test_a_queue_that_the_data_limits_follows_the_data():
    """A change of the data is accepted or refused by itself, as test_distill.py shows."""
    requested: dict[str, Any] = {"method": {"queue_length": 64}}
    new = {"method": {"queue_length": 10}}
    assert changed({"method": {"queue_length": 8}}, new, requested) == []
    with pytest.raises(CheckpointError, match=r"another --method.queue-length \(8, now 64\)"):
        changed({"method": {"queue_length": 8}}, requested, requested)
