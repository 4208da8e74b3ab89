import json

import pytest
import timm
import torch
from torch import nn

from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_matched_teacher, load_teacher
from tests.models.test_teachers import moco_file, timm_folder


def cfg_of(architecture: str, **changed) -> dict:
    cfg = timm.get_pretrained_cfg(architecture).to_dict()
    kept = ("input_size", "fixed_input_size", "mean", "std", "classifier", "first_conv")
    return {"pretrained_cfg": {key: cfg[key] for key in kept} | {"num_classes": 0} | changed}


def test_a_folder_with_timms_own_numbers_has_no_warning(tmp_path, caplog):
    load_teacher(f"local-dir:{timm_folder(tmp_path / 'a', **cfg_of('test_resnet'))}")
    assert load_teacher("quickstart").warnings == ()
    assert "mean" not in caplog.text


def test_numbers_unlike_timms_are_warned_of_in_one_line(tmp_path, caplog):
    facts = cfg_of("tf_efficientnet_lite0", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    folder = timm_folder(tmp_path / "a", "tf_efficientnet_lite0", **facts)
    teacher = load_teacher(f"local-dir:{folder}")
    (warning,) = teacher.warnings
    assert warning == (
        "the teacher's mean and std are (0.485, 0.456, 0.406) / (0.229, 0.224, 0.225); timm's "
        "tf_efficientnet_lite0 has (0.5, 0.5, 0.5) / (0.5, 0.5, 0.5); --teacher.mean and "
        "--teacher.std set others"
    )
    assert caplog.text.count(warning) == 1


def test_numbers_that_are_not_stated_are_warned_of(tmp_path):
    facts = cfg_of("test_resnet")
    for name in ("mean", "std"):
        del facts["pretrained_cfg"][name]
    folder = timm_folder(tmp_path / "a", **facts)
    assert "mean" not in json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_teacher(tmp_path / "b", state, None, {"architecture": "test_resnet"})
    moco = moco_file(tmp_path / "m.pth")
    for source in (
        f"local-dir:{folder}",
        f"local-dir:{tmp_path / 'b'}",
        f"mocov3:test_resnet:{moco}",
    ):
        (warning,) = load_teacher(source, image_size=64).warnings
        assert "states no mean and std, (0.485, 0.456, 0.406) / (0.229" in warning
        given = load_teacher(source, image_size=64, mean=(0.1,) * 3, std=(0.9,) * 3)
        assert given.warnings == ()


@pytest.mark.parametrize(
    ("architecture", "size", "sensible"),
    [
        ("test_resnet", 96, 128),
        ("test_resnet", 128, None),
        ("test_vit", 96, 112),
        ("test_vit", 112, None),
    ],
)
def test_images_too_small_for_the_teacher_are_warned_of(
    tmp_path, caplog, architecture, size, sensible
):
    facts = cfg_of(architecture)
    facts["pretrained_cfg"]["input_size"] = [3, 224, 224]
    folder = timm_folder(tmp_path / "a", architecture, **facts)
    student = nn.Conv2d(3, 4, 32, 32)
    teacher = load_matched_teacher(f"local-dir:{folder}", student, image_size=size)
    if sensible is None:
        assert teacher.warnings == ()
    else:
        (warning,) = teacher.warnings
        grid = size // (32 if architecture == "test_resnet" else 16)
        assert f"images of {size} px, a {grid} x {grid} feature map; expected at least" in warning
        assert f"at least {sensible} px (--teacher.image-size)" in warning
        assert caplog.text.count(warning) == 1


def test_a_teacher_trained_on_small_images_takes_them():
    """The quickstart teacher was trained at 48 px, where its map is 2 x 2."""
    student = nn.Conv2d(3, 4, 32, 32)
    assert load_matched_teacher("quickstart", student, image_size=64).warnings == ()
    assert load_matched_teacher("quickstart", student, image_size=32).warnings != ()
    assert load_teacher("quickstart", image_size=64)(torch.rand(1, 3, 64, 64)).shape[2:] == (2, 2)
