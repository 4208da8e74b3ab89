"""A backbone is read from the checkpoints of other libraries, in the layouts they write."""

import argparse
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pcd_hub.errors import WeightError
from pcd_hub.weights.formats.architectures import (
    DETECTRON2,
    MMDET,
    TORCHVISION,
    TRANSFORMERS,
)
from pcd_hub.weights.formats.key_maps import renamed
from pcd_hub.weights.imported.namings import in_timms_names, namings_of
from pcd_hub.weights.imported.reading import read_checkpoint

COUNTER = "num_batches_tracked"


def state_of(architecture: str) -> dict[str, torch.Tensor]:
    state = timm.create_model(architecture, num_classes=0).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v + 3 for k, v in state.items()}


SMALL = state_of("test_resnet")
OTHER = {key: value * 0 for key, value in SMALL.items()}
HEAD = {"fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}


def under(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def read(value: object, folder: Path, architecture: str = "test_resnet", **options):
    file = folder / "checkpoint.pth"
    torch.save(value, file)
    return read_checkpoint(file, architecture, **{"image_size": 224, **options})


# The containers and prefixes are those of the libraries; the names below are timm's.
LAYOUTS = {
    # lightly_train 0.18, exported_last.pt of a timm model
    "LightlyTrain": (SMALL | HEAD, ""),
    # moco, main_moco.py
    "MoCo v2": (
        {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": OrderedDict(
                under("module.encoder_q.", SMALL | HEAD)
                | under("module.encoder_k.", OTHER | HEAD)
                | {"module.queue": torch.zeros(8, 4), "module.queue_ptr": torch.zeros(1).long()}
            ),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.03, "params": [0, 1]}]},
        },
        "state_dict.module.encoder_q.",
    ),
    # moco-v3, moco/builder.py
    "MoCo v3": (
        {
            "state_dict": under("module.base_encoder.", SMALL)
            | under("module.momentum_encoder.", OTHER)
            | {"module.predictor.0.weight": torch.zeros(4, 4)}
        },
        "state_dict.module.base_encoder.",
    ),
    # dino, main_dino.py: save_dict
    "DINO": (
        {
            "student": under("module.backbone.", OTHER) | {"module.head.mlp.0.weight": HEAD},
            "teacher": under("backbone.", SMALL),
            "epoch": 100,
            "args": argparse.Namespace(arch="resnet50", lr=0.1),
            "dino_loss": {"center": torch.zeros(1, 8)},
        },
        "teacher.backbone.",
    ),
    # solo-learn 1.0.7: Lightning, methods/base.py
    "solo-learn": (
        {
            "epoch": 9,
            "global_step": 100,
            "pytorch-lightning_version": "2.1.2",
            "state_dict": under("backbone.", SMALL)
            | under("momentum_backbone.", OTHER)
            | {"projector.0.weight": torch.zeros(4, 4)},
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 1}}}},
            "callbacks": {},
        },
        "state_dict.backbone.",
    ),
    # mmengine 0.10, runner/checkpoint.py, as publish_model.py leaves it
    "mmdet": (
        {
            "meta": {"mmengine_version": "0.10.4", "dataset_meta": {"CLASSES": ("a", "b")}},
            "state_dict": under("backbone.", SMALL) | {"neck.conv.weight": torch.zeros(1)},
        },
        "state_dict.backbone.",
    ),
    # torchvision, models/detection/backbone_utils.py
    "torchvision detection": (
        under("backbone.body.", SMALL) | {"backbone.fpn.inner_blocks.0.0.weight": torch.zeros(1)},
        "backbone.body.",
    ),
    # timm, train.py with --model-ema
    "timm": (
        {"state_dict": OTHER, "state_dict_ema": SMALL | HEAD, "args": argparse.Namespace(a=1)},
        "state_dict_ema.",
    ),
}


@pytest.mark.parametrize("library", LAYOUTS)
def test_the_evaluated_backbone_is_found(tmp_path, library):
    value, prefix = LAYOUTS[library]
    found = read(value, tmp_path)
    assert found.facts["prefix"] == prefix
    assert found.facts["file"] == "checkpoint.pth"
    assert found.state.keys() == SMALL.keys()
    assert all(torch.equal(found.state[key], value) for key, value in SMALL.items())


TABLES = {
    "torchvision": TORCHVISION,
    "detectron2": DETECTRON2,
    "mmdet": MMDET,
    "transformers": TRANSFORMERS,
}


@pytest.mark.parametrize(
    ("library", "architecture", "prefix"),
    [
        ("torchvision", "resnet18", ""),
        ("detectron2", "resnet18", "backbone.bottom_up."),
        ("mmdet", "resnet18d", "backbone."),
        ("transformers", "resnet18", "resnet."),
    ],
)
def test_the_names_of_other_libraries_are_renamed(tmp_path, library, architecture, prefix):
    state = state_of(architecture)
    theirs = under(prefix, renamed(state, TABLES[library][architecture].keys))
    file = tmp_path / "model.safetensors"
    save_file(theirs, file)
    found = read_checkpoint(file, architecture, image_size=224)
    assert library in found.facts["layout"]
    assert found.facts["prefix"] == prefix
    assert found.state.keys() == state.keys()
    for key, value in state.items():
        is_lost = library == "detectron2" and key.endswith(COUNTER)  # FrozenBN has no counters
        assert torch.equal(found.state[key], value * 0 if is_lost else value), key


@pytest.mark.parametrize("build", [timm.create_model, torchvision.models.get_model])
def test_the_children_of_a_resnet_in_a_sequential_are_its_backbone(tmp_path, build):
    """As in Lightly's examples, with a projection head beside it."""
    resnet = build("resnet18")
    backbone = nn.Sequential(*list(resnet.children())[:-1])
    module = nn.ModuleDict({"backbone": backbone, "projection_head": nn.Linear(512, 8)})
    found = read({"state_dict": module.state_dict()}, tmp_path, "resnet18")
    assert (found.facts["prefix"], found.facts["layout"]) == (
        "state_dict.backbone.",
        "nn.Sequential",
    )
    expected = resnet.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.state.items())
    with pytest.raises(WeightError, match="of layers that it does not have"):
        read(nn.Sequential(*build("resnet34").children()).state_dict(), tmp_path, "resnet18")


def test_blocks_that_have_the_names_of_the_stem_are_not_many_backbones(tmp_path):
    """Every block of a ResNet has a ``conv1``, as the network has."""
    state = {f"stages.{number}.conv1.0.weight": torch.zeros(3, 3) for number in range(8)}
    with pytest.raises(WeightError, match="expected timm's keys, such as conv1.0.weight, found"):
        read(state, tmp_path)


def test_a_classifier_with_a_norm_is_not_another_layer(tmp_path):
    """torchvision's ConvNeXt has its last norm and its classifier in one module."""
    state = renamed(state_of("convnext_tiny"), TABLES["torchvision"]["convnext_tiny"].keys)
    classifier = {"classifier.2.weight": torch.zeros(5, 768), "classifier.2.bias": torch.zeros(5)}
    save_file(state | classifier, tmp_path / "model.safetensors")
    found = read_checkpoint(tmp_path / "model.safetensors", "convnext_tiny", image_size=224)
    assert found.state.keys() == state_of("convnext_tiny").keys()
    assert found.facts["unused"] == "classifier.* (2)"


@pytest.mark.parametrize(
    ("library", "architecture"),
    [(library, name) for library, table in TABLES.items() for name in table],
)
def test_every_renaming_has_an_inverse(library, architecture):
    with torch.device("meta"):
        state = timm.create_model(architecture, num_classes=0).state_dict()
    keys = TABLES[library][architecture].keys
    (naming,) = (one for one in namings_of(architecture) if one.keys == keys)
    again = in_timms_names(renamed(state, keys), naming, state)
    assert again.keys() == state.keys() - {
        k for k in state if library == "detectron2" and COUNTER in k
    }
    assert all(value.shape == state[key].shape for key, value in again.items())


def test_what_detectron2_does_otherwise_is_a_warning(tmp_path):
    theirs = renamed(state_of("resnet18"), DETECTRON2["resnet18"].keys)
    (order,) = read({"model": theirs}, tmp_path, "resnet18").warnings
    assert "BGR by default" in order
    found = read({"model": theirs}, tmp_path, "resnet18", bgr=True)
    assert found.warnings == ()
    assert torch.equal(found.state["conv1.weight"], theirs["stem.conv1.weight"].flip(1))
    theirs = renamed(state_of("resnet50"), DETECTRON2["resnet50"].keys)
    (stride,) = read({"model": theirs}, tmp_path, "resnet50", bgr=True).warnings
    assert "STRIDE_IN_1X1" in stride


def test_a_copy_can_be_chosen(tmp_path):
    value, _ = LAYOUTS["MoCo v2"]
    found = read(value, tmp_path, prefix="state_dict.module.encoder_k")
    assert not found.state["conv1.0.weight"].any()
    twice = {"one": SMALL, "two": OTHER}
    with pytest.raises(
        WeightError, match="2 backbones are below 'one.', 'two.'; choose .*--prefix"
    ):
        read(twice, tmp_path)


HALF = dict(list(SMALL.items())[: len(SMALL) // 2])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (under("net.", HALF), r"\d+ of its \d+ tensors are missing below 'net.' \(first layer"),
        (HEAD, r"expected timm's keys, such as conv1.0.weight, found fc.\* \(2\)"),
        ({"epoch": 3}, "found no tensors"),
        (SMALL | {"layer4.7.bn1.weight": torch.zeros(1)}, "of layers that it does not have"),
        (SMALL | {"conv1.0.weight": torch.zeros(2, 3)}, r"1 of its .* \(2, 3\) float32, expected"),
        (SMALL | {"conv1.0.weight": SMALL["conv1.0.weight"].int()}, "int32, expected"),
        (SMALL | {"bn1.weight": SMALL["bn1.weight"] * float("nan")}, "bn1.weight holds NaN"),
    ],
)
def test_what_is_not_the_backbone_is_one_line(tmp_path, value, message):
    with pytest.raises(WeightError, match=message) as caught:
        read(value, tmp_path)
    assert "\n" not in str(caught.value)
    assert "checkpoint.pth" in str(caught.value)


def test_a_deeper_network_is_not_cut_off(tmp_path):
    with pytest.raises(WeightError, match="that it does not have .first layer1.2.conv1.weight"):
        read(state_of("resnet34"), tmp_path, "resnet18")


class Code:
    def __reduce__(self):
        return Path.mkdir, (Path("ran"),)


@pytest.mark.parametrize(
    "value", [{"state_dict": SMALL, "x": Code()}, timm.create_model("test_resnet")]
)
def test_code_is_not_run(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightError, match="no checkpoint of plain tensors"):
        read(value, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.pth", "no\x1bne.pth"):
        with pytest.raises(WeightError, match=r"no file .*ne.pth; expected a checkpoint"):
            read_checkpoint(tmp_path / name, "test_resnet", image_size=224)


def test_an_architecture_of_fixed_size_needs_the_size_of_its_training(tmp_path):
    model = timm.create_model("test_vit", num_classes=0, img_size=64)
    with pytest.raises(WeightError, match="pos_embed .*another --image-size"):
        read(model.state_dict(), tmp_path, "test_vit", image_size=160)
    found = read(model.state_dict(), tmp_path, "test_vit", image_size=64)
    assert torch.equal(found.state["pos_embed"], model.pos_embed)
