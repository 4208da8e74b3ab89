import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pcd_hub.errors import TeacherError
from pcd_hub.method.resampling import Resample
from pcd_hub.models import checkpoints, teacher_loading, teachers
from pcd_hub.models.layouts import LAYOUTS, layout_of
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_matched_teacher, load_teacher
from pcd_hub.models.teacher_sources.memory import architecture_of
from pcd_hub.models.timm_loading import create_pretrained
from tests.versions import loads_headless_swin
from tests.weights.making import head, moco_state


def moco_file(path: Path, arch: str = "test_resnet", *, width: int = 96, **changes) -> Path:
    state = moco_state(arch, width=width) | changes
    torch.save({"epoch": 1, "arch": arch, "state_dict": state}, path)
    return path


IMAGES = torch.rand(2, 3, 64, 64)


def test_a_moco_file_becomes_a_frozen_pixel_teacher(tmp_path):
    teacher = load_teacher(f"mocov3:test_resnet:{moco_file(tmp_path / 'm.pth')}", image_size=64)
    pixels = teacher(IMAGES)
    assert pixels.shape == (2, 32, 2, 2)
    assert teacher.num_channels == 32
    assert not pixels.requires_grad
    assert not pixels.is_inference(), "the loss must be able to keep it"
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.facts.head == "Linear-BatchNorm1d-ReLU-Linear-BatchNorm1d"


def test_train_does_not_move_a_teacher(tmp_path):
    teacher = load_teacher(f"mocov3:test_resnet:{moco_file(tmp_path / 'm.pth')}", image_size=64)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    expected = teacher(IMAGES)
    nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert torch.equal(teacher(IMAGES), expected)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_the_momentum_encoder_is_used_and_its_mean_is_the_embedding(tmp_path):
    """The law on a whole teacher, against the encoder rebuilt by hand."""
    file = moco_file(tmp_path / "m.pth")
    state = torch.load(file, weights_only=True)["state_dict"]
    backbone = timm.create_model("test_resnet", num_classes=0).eval()
    projector = head(backbone.num_features, 96, 32, last_norm=True).eval()
    prefix = "module.momentum_encoder."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    projector.load_state_dict(
        {k.removeprefix("fc."): v for k, v in own.items() if k.startswith("fc.")}
    )
    backbone.load_state_dict({k: v for k, v in own.items() if not k.startswith("fc.")})
    teacher = load_teacher(f"mocov3:test_resnet:{file}", image_size=64)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    with torch.no_grad():
        embedding = projector(backbone((IMAGES - mean) / std))
    torch.testing.assert_close(teacher(IMAGES).mean((2, 3)), embedding, rtol=1e-4, atol=1e-5)


def resnet50_file(path: Path, layout: str) -> Path:
    """Key sets of the official ResNet-50 files; heads narrowed, widths are read from the file."""
    backbone = timm.create_model("resnet50", num_classes=0).state_dict()
    match layout:
        case "mocov3_r50":
            return moco_file(path, "resnet50", width=64)
        case "byol_r50":
            parts = {
                "module.target_encoder.": backbone,
                "module.target_encoder.fc.": head(2048, 64, 32, bias=True).state_dict(),
                "module.online_encoder.": {"conv1.weight": backbone["conv1.weight"]},
                "module.predictor.": head(32, 64, 32).state_dict(),
            }
            container = "model"
        case "swav_r50":
            parts = {
                "module.": backbone,
                "module.projection_head.": head(2048, 64, 16, bias=True).state_dict(),
                "module.prototypes.": {"weight": torch.zeros(30, 16)},
            }
            container = None
        case "barlow_twins_r50":
            parts = {
                "module.backbone.": backbone,
                "module.projector.": head(2048, 64, 64, 64).state_dict(),
                "module.bn.": {"running_mean": torch.zeros(64), "running_var": torch.ones(64)},
            }
            container = "model"
        case "dino_r50":
            parts, container = {"": backbone}, None
        case _:
            raise AssertionError(layout)
    state = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
    torch.save({container: state} if container else state, path)
    return path


@pytest.mark.parametrize(
    ("layout", "channels"),
    [
        ("mocov3_r50", 32),
        ("byol_r50", 32),
        ("swav_r50", 16),
        ("barlow_twins_r50", 64),
        ("dino_r50", 2048),
    ],
)
def test_the_official_resnet50_layouts_load(tmp_path, layout, channels):
    teacher = load_teacher(f"{layout}:{resnet50_file(tmp_path / 'file', layout)}", image_size=64)
    assert teacher(IMAGES).shape == (2, channels, 2, 2)


def test_a_plain_resnet_file_is_a_headless_teacher(tmp_path):
    """torchvision's keys are timm's; old files lack num_batches_tracked, others are safetensors."""
    model = timm.create_model("resnet18", num_classes=1000).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("batches_tracked")}
    torch.save(state, tmp_path / "resnet18-5c106cde.pth")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 64, 64)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    with torch.no_grad():
        expected = model.forward_features((images - mean) / std)
    for file in ("resnet18-5c106cde.pth", "model.safetensors"):
        teacher = load_teacher(f"resnet:resnet18:{tmp_path / file}", image_size=64)
        assert teacher.facts.head == "none"
        torch.testing.assert_close(teacher(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(TeacherError, match="looks like a ResNet with a classifier"):
        load_teacher(f"mocov3:resnet18:{wrapped(state, tmp_path / 'w')}")
    with pytest.raises(TeacherError, match="needs an architecture, as in resnet:resnet50"):
        load_teacher(f"resnet::{tmp_path / 'model.safetensors'}")


def wrapped(state: dict, file: Path) -> Path:
    torch.save({"state_dict": state}, file)
    return file


def test_a_ddp_prefix_may_be_there_or_not(tmp_path):
    file = moco_file(tmp_path / "m.pth")
    state = torch.load(file, weights_only=True)["state_dict"]
    bare = wrapped({k.removeprefix("module."): v for k, v in state.items()}, tmp_path / "bare")
    one, other = (load_teacher(f"mocov3:test_resnet:{f}", image_size=64) for f in (file, bare))
    assert one.facts.sha256 == other.facts.sha256
    assert one.facts.origin["source_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert other.facts.origin["source_file"] == "bare"


def test_the_last_norm_of_moco_can_be_left_out(tmp_path):
    source = f"mocov3:test_resnet:{moco_file(tmp_path / 'm.pth')}"
    kept = load_teacher(source, image_size=64)
    dropped = load_teacher(source, image_size=64, keep_last_norm=False)
    assert dropped.facts.head == "Linear-BatchNorm1d-ReLU-Linear"
    assert dropped.facts.sha256 != kept.facts.sha256
    last = kept.head[-1]
    assert last.running_mean.abs().max() == 0, "test data: a fresh norm only divides"
    torch.testing.assert_close(dropped(IMAGES) / (1 + last.eps) ** 0.5, kept(IMAGES))
    with pytest.raises(TeacherError, match=r"\(none\) does not end in a BatchNorm without weights"):
        load_teacher(f"local-dir:{timm_folder(tmp_path / 't')}", keep_last_norm=False)


def test_the_head_can_keep_its_plain_relu(tmp_path):
    """As the vector head at each location, also with folded norms and resampled maps."""
    source = f"mocov3:test_resnet:{moco_file(tmp_path / 'm.pth')}"
    spatial = load_teacher(source, image_size=64)
    plain = load_teacher(source, image_size=64, adaptor="plain")
    assert plain.facts.head == f"{spatial.facts.head} (plain ReLU)"
    with torch.no_grad():
        maps = plain.grid((IMAGES - plain.mean) / plain.std)
        vectors = maps.movedim(1, -1).flatten(0, 2)[:, :, None, None]
        expected = spatial.head(vectors).view(2, 2, 2, 32).movedim(-1, 1)  # ReLU on one location
    torch.testing.assert_close(plain(IMAGES), expected, rtol=1e-4, atol=1e-5)
    matched = load_matched_teacher(source, student_grid(24), image_size=96, adaptor="plain")
    matched.fold_batch_norms(96)
    assert matched(torch.rand(2, 3, 96, 96)).shape == (2, 32, 4, 4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in matched.head.modules())


def test_a_plain_relu_needs_a_head(tmp_path):
    with pytest.raises(TeacherError, match=r"--teacher.adaptor plain .* found none; leave it out"):
        load_teacher(f"local-dir:{timm_folder(tmp_path / 't')}", adaptor="plain")


def test_the_moco_vit_layout_loads(tmp_path):
    backbone = timm.create_model("vit_base_patch16_224", num_classes=0).state_dict()
    parts = {"": backbone, "head.": head(768, 64, 64, 32, last_norm=True).state_dict()}
    state = {
        f"module.momentum_encoder.{p}{k}": v for p, part in parts.items() for k, v in part.items()
    }
    torch.save({"state_dict": state}, tmp_path / "vit.pth")
    teacher = load_teacher(f"mocov3_vit_b:{tmp_path / 'vit.pth'}")
    assert teacher(torch.rand(1, 3, 224, 224)).shape == (1, 32, 14, 14)
    smaller = load_teacher(f"mocov3_vit_b:{tmp_path / 'vit.pth'}", image_size=96)
    assert smaller(torch.rand(1, 3, 96, 96)).shape == (1, 32, 6, 6)


def test_a_file_of_another_layout_is_refused_and_recognised(tmp_path):
    swav = resnet50_file(tmp_path / "swav", "swav_r50")
    with pytest.raises(TeacherError, match="no entry 'state_dict'"):
        load_teacher(f"mocov3_r50:{swav}")
    torch.save({"state_dict": torch.load(swav, weights_only=True)}, tmp_path / "wrapped")
    with pytest.raises(TeacherError, match="looks like swav_r50"):
        load_teacher(f"mocov3_r50:{tmp_path / 'wrapped'}")


def test_another_architecture_is_refused(tmp_path):
    file = moco_file(tmp_path / "m.pth", "resnet18")
    with pytest.raises(TeacherError, match=r"does not fit resnet50: \d+ keys missing"):
        load_teacher(f"mocov3_r50:{file}")


def test_a_truncated_file_is_refused(tmp_path):
    file = moco_file(tmp_path / "m.pth")
    raw = file.read_bytes()
    for size in (0, 100, len(raw) // 2, len(raw) - 1):
        file.write_bytes(raw[:size])
        with pytest.raises(TeacherError, match="truncated, or no checkpoint"):
            load_teacher(f"mocov3:test_resnet:{file}")


def test_keys_nobody_expects_are_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"1 keys that this layout does not have: surprise"):
        load_teacher(
            f"mocov3:test_resnet:{moco_file(tmp_path / 'a', **{'module.surprise': torch.zeros(1)})}"
        )
    extra = {"module.momentum_encoder.layer9.weight": torch.zeros(1)}
    with pytest.raises(TeacherError, match=r"1 unknown \(layer9\.weight\)"):
        load_teacher(f"mocov3:test_resnet:{moco_file(tmp_path / 'b', **extra)}")


def test_a_missing_head_and_the_wrong_branch_are_refused(tmp_path):
    file = moco_file(tmp_path / "m.pth")
    loaded = torch.load(file, weights_only=True)
    state = loaded["state_dict"]
    torch.save(
        {"state_dict": {k: v for k, v in state.items() if ".fc." not in k}}, tmp_path / "headless"
    )
    with pytest.raises(TeacherError, match="no trained head"):
        load_teacher(f"mocov3:test_resnet:{tmp_path / 'headless'}")
    torch.save(
        {"state_dict": {k: v for k, v in state.items() if "momentum" not in k}}, tmp_path / "base"
    )
    with pytest.raises(
        TeacherError, match=r"no key under 'momentum_encoder.', it has base_encoder"
    ):
        load_teacher(f"mocov3:test_resnet:{tmp_path / 'base'}")


def test_a_pickle_with_code_is_not_run(tmp_path):
    import os
    import pickle

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    (tmp_path / "evil").write_bytes(pickle.dumps({"state_dict": Attack()}))
    with pytest.raises(TeacherError, match="no checkpoint of plain tensors"):
        load_teacher(f"mocov3_r50:{tmp_path / 'evil'}")
    assert not (tmp_path / "pwned").exists()


def test_a_head_that_breaks_the_law_is_refused(tmp_path, monkeypatch):
    file = moco_file(tmp_path / "m.pth")
    monkeypatch.setattr("pcd_hub.method.heads.SpatialReLU", nn.ReLU)
    with pytest.raises(TeacherError, match="cannot be applied to"):
        load_teacher(f"mocov3:test_resnet:{file}", image_size=96)


def timm_folder(path: Path, arch: str = "test_resnet", **facts) -> Path:
    model = timm.create_model(arch, num_classes=0)
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    cfg = {"num_classes": 0, "classifier": "fc", "input_size": [3, 64, 64]}
    cfg |= {"mean": [0.1] * 3, "std": [0.5] * 3}
    facts = {"architecture": arch, "num_classes": 0, "pretrained_cfg": cfg} | facts
    (path / "config.json").write_text(json.dumps(facts))
    return path


def test_a_folder_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    """A shell does not expand it after ``local-dir:``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    timm_folder(tmp_path / "t")
    assert load_teacher("local-dir:~/t").facts.mean == (0.1, 0.1, 0.1)
    assert architecture_of("local-dir:~/t") == "test_resnet"


def test_a_timm_folder_is_a_headless_teacher_with_its_own_mean_and_std(tmp_path):
    folder = timm_folder(tmp_path / "t")
    teacher = load_teacher(f"local-dir:{folder}")
    assert teacher.facts.mean == (0.1, 0.1, 0.1)
    assert teacher.facts.head == "none"
    model = create_pretrained(f"local-dir:{folder}").eval()
    with torch.no_grad():
        assert torch.equal(teacher(IMAGES), model.forward_features((IMAGES - 0.1) / 0.5))


def test_a_teacher_whose_weights_were_not_all_loaded_is_refused(tmp_path):
    """timm drops to strict=False here and only logs the missing keys."""
    folder = timm_folder(tmp_path / "t")
    state = load_file(folder / "model.safetensors")
    del state["layer2.0.conv1.weight"]
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 1000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        TeacherError, match=r"1 weights are not in its file \(layer2\.0\.conv1\.weight\)"
    ):
        load_teacher(f"local-dir:{folder}")


def test_a_teacher_without_weights_is_an_error_never_a_random_net():
    with pytest.raises(TeacherError, match="A teacher needs its pretrained weights"):
        load_teacher("timm:resnet18.pcd")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tim:resnet18", "unknown teacher 'tim:resnet18'; did you mean 'timm'"),
        ("timm:resnet81", "did you mean 'resnet"),
        ("mocov3_r50:/nowhere.pth", "no teacher file /nowhere.pth"),
        ("local-dir:/nowhere", "no teacher folder /nowhere; expected one that timm"),
    ],
)
def test_unknown_sources_are_named(source, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(source)


def test_a_saved_teacher_is_the_same_teacher(tmp_path):
    file = moco_file(tmp_path / "m.pth")
    teacher = load_teacher(f"mocov3:test_resnet:{file}", image_size=64)
    backbone, vector_head, _ = checkpoints.read_checkpoint(file, layout_of("mocov3", "test_resnet"))
    save_teacher(
        tmp_path / "saved", backbone, vector_head, {"architecture": "test_resnet", "license": "mit"}
    )
    again = load_teacher(f"local-dir:{tmp_path / 'saved'}", image_size=64)
    assert torch.equal(again(IMAGES), teacher(IMAGES))
    assert again.facts.sha256 == teacher.facts.sha256
    assert again.facts.license == "mit"
    (tmp_path / "saved" / "teacher.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(TeacherError, match="no complete teacher"):
        load_teacher(f"local-dir:{tmp_path / 'saved'}")


def test_grids_are_matched_and_it_is_said(tmp_path, caplog):
    teacher = load_teacher(f"local-dir:{timm_folder(tmp_path / 't')}")
    before = teacher(IMAGES)
    with caplog.at_level("INFO"):
        teacher.set_sizes(64, grid=(1, 1))
    assert "2 x 2 feature maps are resampled to the student's 1 x 1" in caplog.text
    torch.testing.assert_close(teacher(IMAGES), before.mean((2, 3), keepdim=True))


def test_the_law_holds_on_a_grid_that_does_not_divide(tmp_path, monkeypatch):
    """The mean over the resampled pixels is the teacher's own vector: a key of the queue."""
    head = nn.Sequential(nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    backbone = timm.create_model("test_resnet", num_classes=0)
    save_teacher(tmp_path, backbone.state_dict(), head, {"architecture": "test_resnet"})
    source, images = f"local-dir:{tmp_path}", torch.rand(2, 3, 160, 160)
    teacher = load_teacher(source, image_size=160)
    maps = teacher.grid((images - teacher.mean) / teacher.std)
    for student, side in ((student_grid(40), 4), (student_grid(22), 7)):
        matched = load_matched_teacher(source, student, image_size=160)
        pixels = matched(images)
        assert pixels.shape[2:] == (side, side)
        torch.testing.assert_close(pixels.mean((2, 3)), head(maps.mean((2, 3))))

    monkeypatch.setattr(
        Resample, "forward", lambda self, maps: nn.functional.adaptive_avg_pool2d(maps, 4)
    )
    with pytest.raises(TeacherError, match=r"mean of its resampled feature map differs .* by \d"):
        load_matched_teacher(source, student_grid(40), image_size=160)


@pytest.mark.parametrize("layer", [nn.GELU(), nn.LayerNorm(8)])
def test_a_head_of_gelu_or_layer_norm_is_refused_by_name_with_the_way_out(tmp_path, layer):
    backbone = timm.create_model("test_resnet", num_classes=0).state_dict()
    good = nn.Sequential(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 4))
    bad = nn.Sequential(good[0], layer, good[2])
    facts, name = {"architecture": "test_resnet"}, type(layer).__name__
    with pytest.raises(TeacherError, match=rf"head\.1 is {name}.* without its head instead"):
        save_teacher(tmp_path / "bad", backbone, bad, facts)
    assert not (tmp_path / "bad").exists()
    save_teacher(tmp_path / "good", backbone, good, facts)
    file = tmp_path / "good" / "teacher.json"
    file.write_text(file.read_text().replace("Linear-ReLU-Linear", f"Linear-{name}-Linear"))
    with pytest.raises(TeacherError, match=rf"states the head Linear-{name}-Linear"):
        load_teacher(f"local-dir:{tmp_path / 'good'}", image_size=64)


FAMILIES = [
    # architecture, size, grid: prefix tokens, registers, none; rotary and fixed positions; CNNs
    ("vit_tiny_patch16_224", 96, 6),
    ("vit_small_patch14_reg4_dinov2", 98, 7),
    ("vit_small_patch16_dinov3", 96, 6),
    ("vit_base_patch32_siglip_256", 96, 3),
    ("convnext_atto", 96, 3),
    pytest.param("swin_tiny_patch4_window7_224", 224, 7, marks=loads_headless_swin),
]


@pytest.mark.parametrize(("arch", "size", "grid"), FAMILIES)
def test_any_timm_model_can_teach(tmp_path, arch, size, grid):
    """Of a fixed size too: its positions are fitted to the size that is asked for."""
    cfg = timm.get_pretrained_cfg(arch).to_dict()
    folder = timm_folder(
        tmp_path / "t",
        arch,
        pretrained_cfg={key: cfg[key] for key in ("input_size", "fixed_input_size", "mean", "std")}
        | {"num_classes": 0, "classifier": cfg["classifier"], "first_conv": cfg["first_conv"]},
    )
    teacher = load_teacher(f"local-dir:{folder}", image_size=size)
    assert teacher(torch.rand(2, 3, size, size)).shape == (2, teacher.num_channels, grid, grid)
    assert teacher.facts.mean == tuple(cfg["mean"])


def student_grid(stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, stride, stride))


def test_a_teacher_may_see_another_size_so_that_the_grids_agree(tmp_path, caplog):
    """Stride 16 beside stride 32: at half the student's size nothing is resampled."""
    arch, cfg = "test_vit", {"input_size": [3, 160, 160], "fixed_input_size": True}
    cfg |= {"mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0, "classifier": "head"}
    source = f"local-dir:{timm_folder(tmp_path / 't', arch, pretrained_cfg=cfg)}"
    images = torch.rand(2, 3, 128, 128)
    with caplog.at_level("INFO"):
        matched = load_matched_teacher(
            source, student_grid(32), image_size=128, teacher_image_size="match"
        )
    assert "the teacher's input is 64 px, the student's 128 px" in caplog.text
    assert "resampled" not in caplog.text
    small = nn.functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(matched(images), load_teacher(source, image_size=64)(small))

    caplog.clear()
    with caplog.at_level("INFO"):
        resampled = load_matched_teacher(source, student_grid(32), image_size=128)
    assert "8 x 8 feature maps are resampled to the student's 4 x 4" in caplog.text
    full = load_teacher(source, image_size=128)(images)
    torch.testing.assert_close(resampled(images), nn.functional.avg_pool2d(full, 2))

    caplog.clear()
    with caplog.at_level("INFO"):
        larger = load_matched_teacher(
            source, student_grid(32), image_size=128, teacher_image_size=192
        )
    assert "the teacher's input is 192 px, the student's 128 px" in caplog.text
    assert "12 x 12 feature maps are resampled to the student's 4 x 4" in caplog.text
    large = nn.functional.interpolate(images, (192, 192), mode="bilinear", antialias=True)
    full = load_teacher(source, image_size=192)(large)
    torch.testing.assert_close(larger(images), nn.functional.avg_pool2d(full, 3))


def test_an_oblong_teacher_matches_each_side_or_keeps_the_aspect_ratio(tmp_path, caplog):
    arch, cfg = "test_vit", {"input_size": [3, 160, 160], "fixed_input_size": True}
    cfg |= {"mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0, "classifier": "head"}
    source = f"local-dir:{timm_folder(tmp_path / 't', arch, pretrained_cfg=cfg)}"
    images, student = torch.rand(2, 3, 96, 160), student_grid(32)
    with caplog.at_level("INFO"):
        matched = load_matched_teacher(
            source, student, image_size=(96, 160), teacher_image_size="match"
        )
    assert "the teacher's input is 48 x 80 px, the student's 96 x 160 px" in caplog.text
    assert matched.input_size == (48, 80)
    assert matched(images).shape[2:] == (3, 5)
    small = nn.functional.interpolate(images, (48, 80), mode="bilinear", antialias=True)
    torch.testing.assert_close(matched(images), load_teacher(source, image_size=(48, 80))(small))
    for size, expected in ((192, (192, 320)), ((64, 96), (64, 96)), ((96, 160), None)):
        teacher = load_matched_teacher(
            source, student, image_size=(96, 160), teacher_image_size=size
        )
        assert teacher.input_size == expected
        assert teacher(images).shape[2:] == (3, 5)


def test_where_no_size_fits_the_pixels_are_resampled(tmp_path, caplog, monkeypatch):
    source = f"local-dir:{timm_folder(tmp_path / 't')}"

    load = teacher_loading._load

    def stubborn(source: str, image_size: int, **options):
        if image_size != 160:
            raise TeacherError("takes 160 px alone")
        return load(source, image_size, **options)

    monkeypatch.setattr(teacher_loading, "_load", stubborn)
    with caplog.at_level("INFO"):
        teacher = load_matched_teacher(
            source, student_grid(40), image_size=160, teacher_image_size="match"
        )
    assert teacher(torch.rand(1, 3, 160, 160)).shape[2:] == (4, 4)
    assert "5 x 5 feature maps are resampled to the student's 4 x 4" in caplog.text


def test_offline_the_way_out_is_named(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Cannot reach the Hub: offline mode is enabled")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", offline)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", offline)
    for source in ("timm:resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"):
        with pytest.raises(TeacherError, match=r"offline mode .*or use a file"):
            load_teacher(source)


def test_the_quickstart_teacher_is_whole_and_small():
    teacher = load_teacher("quickstart", image_size=64)
    folder = Path(teachers.__file__).parent / "quickstart_teacher"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    assert teacher.facts.license == "apache-2.0"
    assert teacher(IMAGES).shape[:2] == (2, teacher.num_channels)
    assert dataclasses.asdict(teacher.facts)["head"].startswith("Linear-BatchNorm1d-ReLU-Linear")


def test_every_head_lies_inside_its_encoder_or_beside_it():
    for name, layout in LAYOUTS.items():
        assert (layout.head is None) == (name == "dino_r50")
        if layout.head is not None and name != "barlow_twins_r50":
            assert layout.head.startswith(layout.encoder)


@pytest.mark.parametrize(
    "odd",
    [
        [],
        {"architecture": ["test_resnet"]},
        {"mean": 0.5},
        {"mean": [0.1, 0.2]},
        {"std": [0.2, 0.0, 0.2]},
        {"std": [float("nan")] * 3},
        {"license": ["mit"]},
    ],
    ids=str,
)
def test_odd_facts_of_a_teacher_are_named(tmp_path, odd):
    save_teacher(
        tmp_path,
        timm.create_model("test_resnet").state_dict(),
        None,
        {"architecture": "test_resnet"},
    )
    facts = json.loads((tmp_path / "teacher.json").read_text())
    (tmp_path / "teacher.json").write_text(json.dumps(facts | odd if odd else odd))
    with pytest.raises(TeacherError, match="is no complete teacher"):
        load_teacher(f"local-dir:{tmp_path}")
    (tmp_path / "teacher.json").write_text("[" * 100_000)
    with pytest.raises(TeacherError, match="is no complete teacher"):
        load_teacher(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_a_dtype_that_no_teacher_has_are_refused_by_name(tmp_path, dtype):
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_teacher(tmp_path / "ours", state, None, {"architecture": "test_resnet"})
    first = next(iter(state))
    for prefix, weights in (
        ("backbone.", tmp_path / "ours" / "teacher.safetensors"),
        ("", tmp_path / "model.safetensors"),
    ):
        tensors = {f"{prefix}{key}": value for key, value in state.items()}
        save_file(tensors | {f"{prefix}{first}": state[first].to(dtype)}, weights)
    message = rf"{first} holds {dtype}, expected float16 .*; convert it"
    with pytest.raises(TeacherError, match=message):
        load_teacher(f"local-dir:{tmp_path / 'ours'}")
    with pytest.raises(TeacherError, match=message):
        load_teacher(f"resnet:test_resnet:{tmp_path / 'model.safetensors'}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_less_or_more_precision_are_read(tmp_path, dtype):
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_file(
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()},
        tmp_path / "model.safetensors",
    )
    teacher = load_teacher(f"resnet:test_resnet:{tmp_path / 'model.safetensors'}", image_size=64)
    assert teacher(IMAGES).dtype == torch.float32


def test_facts_of_a_teacher_are_read_to_a_bound(tmp_path):
    save_teacher(
        tmp_path,
        timm.create_model("test_resnet").state_dict(),
        None,
        {"architecture": "test_resnet", "note": "x" * 10**6},
    )
    with pytest.raises(TeacherError, match=r"no complete teacher .*expected at most 1000000"):
        load_teacher(f"local-dir:{tmp_path}")


def test_the_path_of_a_folder_gets_the_scheme_that_it_lacks(tmp_path):
    with pytest.raises(TeacherError, match=f"did you mean 'local-dir:{tmp_path}'"):
        load_teacher(str(tmp_path), image_size=64)
