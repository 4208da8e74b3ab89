from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pcd_hub.errors import TeacherError
from pcd_hub.models.teacher_loading import load_teacher

IMAGES = torch.rand(2, 3, 160, 160)


def model(architecture: str = "test_vit", **arguments) -> torch.nn.Module:
    return timm.create_model(architecture, **arguments).eval()


def saved(state: object, file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


def expected_features(network: torch.nn.Module, mean, std) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    with torch.no_grad():
        tokens = network.forward_features((IMAGES - mean) / std)[:, network.num_prefix_tokens :]
    return tokens.transpose(1, 2).unflatten(2, (10, 10))


def nested(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


LAYOUTS = {
    "plain": lambda state: state,
    "a training checkpoint": lambda state: {"epoch": 3, "state_dict": nested(state, "module.")},
    "with a head beside it in a flat file": lambda state: (
        nested(state, "encoder.") | {"decoder.weight": torch.zeros(3)}
    ),
    "in one of two containers": lambda state: {
        "model": state,
        "model_before": {"decoder.weight": torch.zeros(3)},
    },
    "with an optimizer": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
    },
    "an average": lambda state: {"model": nested(state, "x."), "model_ema": state},
    "student and teacher": lambda state: {
        "student": nested({key: value + 1 for key, value in state.items()}, "backbone."),
        "teacher": nested(state, "module.backbone."),
    },
    "of any other name": lambda state: {"net": nested(state, "trunk."), "epoch": 3},
    "an average of any other name": lambda state: {
        "net": {key: value + 1 for key, value in state.items()},
        "net_ema": state,
    },
    "with a head below no prefix": lambda state: state | {"decoder.weight": torch.zeros(3)},
    "with a head beside it": lambda state: {
        "model": nested(state, "encoder.") | {"decoder.weight": torch.zeros(3)}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_found_under_their_prefix(tmp_path, layout):
    network = model()
    file = saved(LAYOUTS[layout](network.state_dict()), tmp_path / "file.pth")
    teacher = load_teacher(f"timm:test_vit:{file}", image_size=160)
    cfg = timm.get_pretrained_cfg("test_vit")
    features = expected_features(network, cfg.mean, cfg.std)
    torch.testing.assert_close(teacher(IMAGES), features, rtol=1e-4, atol=1e-5)
    assert teacher.facts.origin["source_file"] == "file.pth"
    unused = [one for one in teacher.warnings if "are not used" in one]
    assert unused == (
        ["1 tensors of the teacher's file are not used: decoder"] if "head" in layout else []
    )


def test_safetensors_other_sizes_and_tags(tmp_path):
    file = saved(model().state_dict(), tmp_path / "model.safetensors")
    teacher = load_teacher(f"timm:test_vit.r160_in1k:{file}", image_size=96)
    assert teacher(torch.rand(1, 3, 96, 96)).shape == (1, 64, 6, 6)
    assert teacher.warnings == (), "the tag states mean and std"
    with pytest.raises(TeacherError, match="does not fit test_resnet"):
        load_teacher(f"timm:test_resnet:{file}")
    with pytest.raises(TeacherError, match="timm has no architecture 'test_vitt'; did you mean"):
        load_teacher(f"timm:test_vitt:{file}")
    with pytest.raises(TeacherError, match="no teacher file /nowhere"):
        load_teacher("timm:test_vit:/nowhere")


def test_the_keys_of_an_original_release_are_converted(tmp_path):
    """DINOv2's own files name the register tokens differently, and have a mask token."""
    network = model("vit_small_patch14_reg4_dinov2", img_size=56, num_classes=0)
    state = network.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    positions = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], 1)
    file = saved(
        state | {"pos_embed": positions, "mask_token": torch.zeros(1, 384)}, tmp_path / "f"
    )
    teacher = load_teacher(f"timm:vit_small_patch14_reg4_dinov2.lvd142m:{file}", image_size=56)
    images = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        tokens = network.forward_features((images - teacher.mean) / teacher.std)[:, 5:]
    features = teacher(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, tokens, rtol=1e-4, atol=1e-4)


def test_missing_unknown_and_repeated_weights_are_refused(tmp_path):
    state = model("test_resnet").state_dict()
    file = tmp_path / "file"
    source = f"timm:test_resnet:{file}"
    saved({key: value for key, value in state.items() if key != "layer2.0.conv1.weight"}, file)
    with pytest.raises(TeacherError, match=r"1 weights missing \(layer2.0.conv1.weight\), 0 unk"):
        load_teacher(source)
    saved(state | {"layer4.7.conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(TeacherError, match=r"0 weights missing \(\), 1 unknown \(layer4.7.conv1"):
        load_teacher(source)
    saved(nested(state, "one.") | nested(state, "two."), file)
    with pytest.raises(
        TeacherError, match="2 backbones are below 'one.', 'two.'; save the state dict"
    ):
        load_teacher(source)
    saved({"state_dict": {"a": [1]}, "epoch": 1}, file)
    with pytest.raises(TeacherError, match=r"no state dict of tensors \(state_dict, epoch\)"):
        load_teacher(source)
    saved([1], file)
    with pytest.raises(TeacherError, match=r"no state dict of tensors \(no dict\)"):
        load_teacher(source)
    saved(state | {"layer1.0.conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(TeacherError, match="does not fit test_resnet"):
        load_teacher(source)
    saved(nested(state, "net.") | {"head.weight": torch.full((1,), torch.nan)}, file)
    with pytest.raises(TeacherError, match="head.weight holds NaN or infinity"):
        load_teacher(source)
    saved(nested(state, "net.") | {"hea\nd.weight": torch.zeros(1)}, file)
    with pytest.raises(TeacherError, match="expected at most .* printable characters"):
        load_teacher(source)
    file.write_bytes(b"\x80\x04" + b"cos\nsystem\n(S'true'\ntR." * 3)
    with pytest.raises(TeacherError, match="no checkpoint of plain tensors"):
        load_teacher(source)


def test_a_classifier_and_missing_counters_are_no_matter(tmp_path):
    state = {k: v for k, v in model("test_resnet").state_dict().items() if "batches" not in k}
    assert "fc.weight" in state
    teacher = load_teacher(f"timm:test_resnet:{saved(state, tmp_path / 'f')}", image_size=64)
    assert [one for one in teacher.warnings if "not used" in one] == []


def test_mean_and_std_may_be_given(tmp_path):
    source = f"timm:test_resnet:{saved(model('test_resnet').state_dict(), tmp_path / 'f')}"
    teacher = load_teacher(source, image_size=64)
    (warning,) = teacher.warnings
    assert "states no mean and std" in warning
    given = load_teacher(source, image_size=64, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert given.warnings == ()
    assert given.facts.mean == (0.1, 0.2, 0.3)
    images = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(given(images), teacher(images))
    with pytest.raises(TeacherError, match="mean without std; expected both or neither"):
        load_teacher(source, mean=(0.1, 0.2, 0.3))
