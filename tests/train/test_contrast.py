import json

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from pcd_hub.errors import CheckpointError, ConfigError, StudentError
from pcd_hub.method.moco import MoCoV3
from pcd_hub.method.schedule import momentum_to_one
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train import contrast as pretrain
from tests.train.conftest import check_that_places_are_tried, trace

TINY = [
    "mocov3_r50",
    "--encoder.arch=test_resnet",
    "--data.source=scenes:64",
    "--data.image-size=32",
    "--data.num-workers=0",
    "--method.head-width=24",
    "--method.dim=16",
    "--optim.name=adamw",
    "--optim.lr-per-256=0.02",
    "--optim.global-batch-size=16",
    "--speed.precision=fp32",
    "--run.max-steps=4",
    "--run.log-every-steps=1",
]

IMAGES = torch.rand(2, 3, 64, 64)


def test_oblong_views(tmp_path):
    folder = tmp_path / "run"
    size = ["--data.image-size", "32", "64"]
    pretrain.main([*TINY, *size, f"--run.output-dir={folder}", "--run.max-steps=2"])
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["data"]["image_size"] == [32, 64]
    teacher = load_teacher(f"local-dir:{folder / 'teacher'}", image_size=(32, 64))
    assert teacher.grid_size((32, 64)) == (1, 2)


@pytest.mark.usefixtures("short_probe")
def test_what_it_writes_is_a_teacher_in_both_forms(tmp_path, capsys, monkeypatch):
    forward, keys = MoCoV3.forward, []

    def watched(self, first, second, key_first, key_second):
        if not keys:  # the momentum encoder is still a copy
            keys.extend(
                [(key_first, self.base_encoder(first)), (key_second, self.base_encoder(second))]
            )
        return forward(self, first, second, key_first, key_second)

    monkeypatch.setattr(MoCoV3, "forward", watched)
    folder = tmp_path / "run"
    pretrain.main([*TINY, f"--run.output-dir={folder}", "--probe-scenes=8"])
    for key, of_its_view in keys:
        torch.testing.assert_close(key, of_its_view, check_dtype=False)
    assert not torch.allclose(keys[0][0], keys[1][0])
    assert f"local-dir:{folder / 'teacher'}" in capsys.readouterr().out
    from_file = load_teacher(f"mocov3:test_resnet:{folder / 'teacher.pth.tar'}", image_size=64)
    from_folder = load_teacher(f"local-dir:{folder / 'teacher'}", image_size=64)
    assert from_file.num_channels == 16
    torch.testing.assert_close(from_folder(IMAGES), from_file(IMAGES), rtol=2e-2, atol=2e-2)
    assert from_folder.facts.license == "apache-2.0"
    load_teacher(from_folder.facts.source, keep_last_norm=False)  # which has no weights
    record = json.loads((folder / "record.json").read_text())
    assert record["images_seen"] == 64
    assert set(record["metrics"]["scene_probe"]["means"]) == {"random weights", "pre-trained"}


@pytest.mark.parametrize("full", ["teacher.safetensors", "teacher.pth.tar"])
def test_a_full_disk_at_the_end_loses_nothing(tmp_path, monkeypatch, full):
    arguments = [*TINY, "--run.max-steps=1", f"--run.output-dir={tmp_path / 'run'}"]
    check_that_places_are_tried(pretrain.main, arguments)
    save = torch.save

    def save_if_there_is_room(state, file):
        if file.name == full:
            raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 1 vs 2")
        save(state, file)

    def no_room(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(torch, "save", save_if_there_is_room)
    if full == "teacher.safetensors":
        monkeypatch.setattr("pcd_hub.models.tensor_files.save_file", no_room)
    message = f"complete, but its result cannot be written: cannot write .*{full}: .*--run.resume"
    with pytest.raises(CheckpointError, match=message):
        pretrain.main(arguments)


def test_simclr_writes_a_teacher_folder_alone(tmp_path, capsys):
    folder = tmp_path / "run"
    pretrain.main([*TINY, "--method.loss=simclr", f"--run.output-dir={folder}"])
    assert f"local-dir:{folder / 'teacher'}" in capsys.readouterr().out
    assert not (folder / "teacher.pth.tar").exists()
    teacher = load_teacher(f"local-dir:{folder / 'teacher'}", image_size=64)
    assert teacher.facts.head == "Linear-BatchNorm1d-ReLU-Linear-BatchNorm1d"
    assert teacher(IMAGES).shape == (2, 16, 2, 2)


@pytest.mark.parametrize("loss", ["mocov3", "simclr"])
def test_a_resumed_run_is_the_same_run(tmp_path, loss):
    arguments = [*TINY, f"--method.loss={loss}", "--run.checkpoint-every-steps=2"]
    folder = tmp_path / "run"
    pretrain.main([*arguments, f"--run.output-dir={folder}"])
    whole = trace(folder)
    (folder / "checkpoints" / "step_00000004.pt").unlink()
    pretrain.main([*arguments, f"--run.output-dir={folder}", "--run.resume"])
    assert trace(folder) == whole


def test_the_momentum_encoder_follows_slowly_and_at_last_not_at_all(tmp_path, monkeypatch):
    update, seen = pretrain.momentum_update, []

    def watched(slow, fast, *, momentum):
        seen.append(momentum)
        update(slow, fast, momentum=momentum)

    monkeypatch.setattr(pretrain, "momentum_update", watched)
    folder = tmp_path / "run"
    pretrain.main([*TINY, "--method.momentum=0.99", f"--run.output-dir={folder}"])
    assert seen == [momentum_to_one(step, start=0.99, total_steps=4) for step in range(4)]
    state = torch.load(folder / "teacher.pth.tar", weights_only=True)["state_dict"]
    fast = state["module.base_encoder.layer1.0.conv1.weight"]
    slow = state["module.momentum_encoder.layer1.0.conv1.weight"]
    torch.manual_seed(0)
    import timm

    start = timm.create_model("test_resnet", num_classes=0).layer1[0].conv1.weight.detach()
    assert not torch.equal(fast, slow)
    assert (slow - start).norm() < 0.1 * (fast - start).norm()
    assert (slow - start).norm() > 0


def test_only_resnets(tmp_path):
    with pytest.raises(StudentError, match="test_vit: expected a timm ResNet"):
        pretrain.main([*TINY, "--encoder.arch=test_vit", f"--run.output-dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_accumulation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="accumulation-steps 2: expected 1, as the loss"):
        pretrain.main(
            [*TINY, "--optim.accumulation-steps=2", f"--run.output-dir={tmp_path / 'run'}"]
        )


def test_cross_entropy_learns_classes_and_writes_a_backbone_without_head(tmp_path):
    images = tmp_path / "images"
    for number in range(32):
        path = images / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (200 * (number % 2) + number,) * 3).save(path)
    arguments = [
        *TINY,
        f"--data.source={images}",
        "--data.augment=none",
        "--method.loss=cross_entropy",
        "--method.labels=folders",
        "--run.max-steps=30",
        f"--run.output-dir={tmp_path / 'run'}",
    ]
    pretrain.main(arguments)
    losses = [line["loss"] for line in trace(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    teacher = load_teacher(f"local-dir:{tmp_path / 'run' / 'teacher'}", image_size=64)
    assert teacher.num_channels == 96, "the backbone's own features"
    (images / "dark" / "0.png").rename(images / "light" / "0.png")
    with pytest.raises(CheckpointError, match="the (data|labels) changed after step 30"):
        pretrain.main([*arguments, "--run.resume"])
    with pytest.raises(ConfigError, match="--method.labels '': expected labels for cross_entropy"):
        pretrain.main([*TINY, "--method.loss=cross_entropy"])
    with pytest.raises(ConfigError, match="--method.loss mocov3 and --method.labels 'folders'"):
        pretrain.main([*TINY, "--method.labels=folders"])
