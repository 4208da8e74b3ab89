"""What an architecture tells before a student of it is built."""

import pytest
import timm
from torch import nn

from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train.own_images.architectures import has_finer_map, teacher_has_head


@pytest.mark.parametrize(
    ("architecture", "is_finer"),
    [
        *(("resnet18", True), ("mobilenetv4_conv_small", True), ("convnext_atto", True)),
        *(("resnet18_mhsa", True), ("test_vit", False), ("vit_tiny_patch16_224", False)),
        ("no_such_architecture", False),
    ],
)
def test_cnns_have_a_map_that_is_finer_than_the_last_one(architecture, is_finer):
    assert has_finer_map(architecture) is is_finer


@pytest.mark.parametrize(
    ("source", "has_head"),
    [
        *(("mocov3_r50:FILE", True), ("mocov3:resnet18:FILE", True), ("swav_r50:FILE", True)),
        *(("dino_r50:FILE", False), ("resnet:resnet18:FILE", False), ("quickstart", True)),
        *(("timm:resnet18", False), ("local-dir:no_such_folder", False), ("mocov3", True)),
    ],
)
def test_the_source_of_a_teacher_tells_whether_it_has_a_head(source, has_head):
    assert teacher_has_head(source) is has_head


def test_a_teachers_folder_tells_whether_it_has_a_head(tmp_path):
    backbone = timm.create_model("test_resnet", num_classes=0).state_dict()
    facts = {"architecture": "test_resnet"}
    save_teacher(tmp_path / "with", backbone, nn.Sequential(nn.Linear(8, 4)), facts)
    save_teacher(tmp_path / "without", backbone, None, facts)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "teacher.json").write_text("{")
    found = {
        name: teacher_has_head(f"local-dir:{tmp_path / name}")
        for name in ("with", "without", "damaged")
    }
    assert found == {"with": True, "without": False, "damaged": False}


def test_the_head_of_a_loaded_teacher_is_seen():
    assert teacher_has_head("module:x", load_teacher("quickstart", image_size=48))
