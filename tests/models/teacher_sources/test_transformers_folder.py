"""The golden folders are what transformers 5.24 writes (``transformers_golden.py``)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcd_hub.errors import TeacherError
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.models.teacher_sources import transformers_folder
from pcd_hub.models.teacher_sources.transformers_folder import FAMILIES

GOLDEN = Path(__file__).parents[2] / "golden" / "transformers"
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}
CONVNEXT = {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}
CASES = {
    # folder: timm's architecture, and the arguments that make it as small
    "dinov2": ("vit_small_patch14_dinov2", VIT),
    "dinov2_swiglu": ("vit_giant_patch14_dinov2", VIT | {"mlp_ratio": 6}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", VIT),
    "dinov3": ("vit_small_patch16_dinov3", VIT),
    "dinov3_biases": ("vit_small_patch16_dinov3_qkvb", VIT),
    "dinov3_gated": ("vit_small_plus_patch16_dinov3", VIT),
    "dinov3_convnext": ("convnext_tiny", CONVNEXT),
}


@pytest.fixture
def tiny(monkeypatch):
    """Let timm build an architecture with the sizes of the golden models."""
    arguments = transformers_folder.model_arguments

    def read(name: str) -> None:
        architecture, sizes = CASES[name]
        config = json.loads((GOLDEN / name / "config.json").read_text())
        family = FAMILIES[config["model_type"]]
        values = [config.get(field, False) for field in family.size_fields]
        key = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        monkeypatch.setitem(family.architectures, key, architecture.removesuffix("_qkvb"))
        monkeypatch.setattr(
            transformers_folder, "model_arguments", lambda *found: {**arguments(*found), **sizes}
        )

    return read


def copied(name: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN / name, folder)
    (folder / "features.safetensors").unlink()
    return folder


def changed(folder: Path, **fields) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_features_are_those_of_transformers(tiny, name):
    tiny(name)
    golden = load_file(GOLDEN / name / "features.safetensors")
    images, expected = golden["images"].float(), golden["features"]
    teacher = load_teacher(f"local-dir:{GOLDEN / name}", image_size=images.shape[-1])
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (teacher.facts.mean, teacher.facts.std))
    features = teacher(images * std + mean)
    if expected.ndim == 3:  # class token and registers come first
        tokens = features.flatten(2).transpose(1, 2)
        expected = expected[:, expected.shape[1] - tokens.shape[1] :]
        features = tokens
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    assert teacher.facts.architecture == CASES[name][0]
    assert teacher.warnings == ()


def test_positions_are_resampled_to_another_size(tiny):
    tiny("dinov2")
    teacher = load_teacher(f"local-dir:{GOLDEN / 'dinov2'}", image_size=84)
    assert teacher(torch.rand(1, 3, 84, 84)).shape == (1, 16, 6, 6)


def test_mean_std_and_licence_come_from_the_folder(tiny, tmp_path):
    tiny("dinov3")
    folder = copied("dinov3", tmp_path / "t")
    processor = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text("---\ntags: []\nlicense: other\n---\nlicense: mit\n")
    teacher = load_teacher(f"local-dir:{folder}", image_size=64)
    assert teacher.facts.mean == (0.43, 0.411, 0.296)
    assert teacher.facts.license == "other"
    assert teacher.facts.origin["layout"] == "transformers dinov3_vit"
    (folder / "preprocessor_config.json").unlink()
    (folder / "README.md").write_text("license: mit\n")
    teacher = load_teacher(f"local-dir:{folder}", image_size=64)
    assert teacher.facts.license == "not stated"
    (warning,) = teacher.warnings
    assert "states no mean and std, (0.485, 0.456, 0.406) / (0.229, 0.224, 0.225)" in warning


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "siglip"}, "of type siglip, expected one of dinov2, .*in Python any model"),
        ({"model_type": ["dinov2"]}, r"of type \['dinov2'\]"),
        ({"hidden_size": 24}, r"are \(24, 2, 2\), expected those of vit_small_patch14_dinov2"),
        ({"hidden_size": {"a": 1}}, "expected those of vit_small_patch14_dinov2"),
        ({"patch_size": 16}, "patch_size is 16, expected 14"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, expected 1e-06"),
        ({"num_channels": 4}, "num_channels is 4, expected 3"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_other_models_are_refused_in_one_line(tiny, tmp_path, fields, message):
    tiny("dinov2")
    folder = changed(copied("dinov2", tmp_path / "t"), **fields)
    with pytest.raises(TeacherError, match=message) as refused:
        load_teacher(f"local-dir:{folder}", image_size=56)
    assert "\n" not in str(refused.value)


def test_damaged_folders_are_refused(tiny, tmp_path):
    tiny("dinov2")
    folder = copied("dinov2", tmp_path / "t")
    source, weights = f"local-dir:{folder}", folder / "model.safetensors"
    state = {key: value.clone() for key, value in load_file(weights).items()}  # it is overwritten
    save_file({key: v for key, v in state.items() if "layer.1.norm2.bias" not in key}, weights)
    with pytest.raises(TeacherError, match=r"1 keys missing \(blocks.1.norm2.bias\), 0 unknown"):
        load_teacher(source, image_size=56)
    save_file(state | {"classifier.weight": torch.zeros(3, 16)}, weights)
    with pytest.raises(TeacherError, match=r"0 keys missing \(\), 1 unknown \(classifier.weight\)"):
        load_teacher(source, image_size=56)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TeacherError, match="truncated, or no checkpoint"):
        load_teacher(source, image_size=56)
    weights.unlink()
    with pytest.raises(TeacherError, match="has no model.safetensors; .*download it again"):
        load_teacher(source, image_size=56)
    save_file(state, weights)
    for text in ("[1]", "{", '{"image_mean": ["a"], "image_std": [1]}', "[" * 100_000):
        (folder / "preprocessor_config.json").write_text(text)
        with pytest.raises(TeacherError, match="preprocessor_config.json"):
            load_teacher(source, image_size=56)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [1, 1], "image_std": [1, 1]}')
    with pytest.raises(TeacherError, match=r"mean is \(1.0, 1.0\), expected three numbers"):
        load_teacher(source, image_size=56)


def test_every_architecture_is_timms():
    import timm

    for family in FAMILIES.values():
        assert not [name for name in family.architectures.values() if not timm.is_model(name)]
