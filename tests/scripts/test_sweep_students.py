import json

import pytest
import timm

import sweep_students
from sweep_students import Outcome, sweep, table, try_student

FAMILIES = [
    "convnext_atto",
    "edgenext_xx_small",
    "efficientnet_lite0",
    "fastvit_t8",
    "ghostnet_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "mobileone_s0",
    "poolformer_s12",
    "regnety_002",
    "resnet10t",
    "vit_tiny_patch16_224",
]


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.usefixtures("jaxtyping_off")
def test_twelve_families_run_through_all_steps(arch):
    outcome = try_student(arch, 96, 0)
    assert (outcome.verdict, outcome.features_only) == ("works", "works"), outcome.message
    channels, height, width = outcome.grid
    assert height == width == (6 if "vit_tiny" in arch else 3)
    assert channels == {"mobilenetv3_small_050": 288, "resnet10t": 512}.get(arch, channels)
    assert bool(outcome.untrained) == (arch in UNTRAINED)


UNTRAINED = {
    "convnext_atto",
    "edgenext_xx_small",
    "ghostnet_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "poolformer_s12",
}
"""Families with layers after the last map: a norm, or a convolution on the pooled vector."""


@pytest.mark.usefixtures("jaxtyping_off")
def test_shared_tensors_and_several_branches_are_exported():
    """CoaT has both: safetensors rejects shared tensors, and its parameters branch."""
    outcome = try_student("coat_tiny", 224, 0)
    assert (outcome.verdict, outcome.grid) == ("works", (152, 7, 7)), outcome.message


def test_rejections_and_crashes_are_told_apart(monkeypatch):
    refused = try_student("halonet26t", 96, 0)
    assert refused.verdict == "refused"
    assert "halonet26t cannot take 96 x 96 pixels" in refused.message

    def broken(*args, **kwargs):
        raise IndexError("surprise")

    monkeypatch.setattr(sweep_students, "export_weight", broken)
    crashed = try_student("test_resnet", 64, 0)
    assert (crashed.verdict, crashed.message) == ("crash", "IndexError: surprise")


@pytest.mark.timeout(600)
def test_a_second_call_continues_and_the_page_has_the_counts(tmp_path):
    results = tmp_path / "results.jsonl"
    known = Outcome(
        arch="test_vit",
        image_size=64,
        parameters=9,
        verdict="refused",
        message="of | this",
        grid=(),
    )
    results.write_text(json.dumps(known.__dict__) + "\n")
    archs = ["test_resnet", "test_vit", "vit_giant_patch14_224"]
    outcomes = sweep(archs, (64,), results, jobs=1)
    assert [outcome.verdict for outcome in outcomes] == ["works", "refused"]
    assert len(results.read_text().splitlines()) == 3
    page = table(outcomes)
    assert "| 64 | 2 | 1 (50.0 %) | 1 | 0 |" in page
    assert "| test_resnet | 0.4 |  | 96 x 2 x 2 | works |" in page
    assert "refused: of \\| this" in page


def test_large_architectures_are_left_out():
    model = timm.create_model("test_resnet", num_classes=0)
    (outcome,) = sweep_students.try_all_sizes("test_resnet", (64,))
    assert outcome.parameters == sum(p.numel() for p in model.parameters())
    (large,) = sweep_students.try_all_sizes("vit_large_patch16_224", (224, 96))
    assert (large.verdict, large.parameters) == ("too large", 303_301_632)
