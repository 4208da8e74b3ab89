"""The backbone is found in checkpoints of any training code."""

import pytest
import timm
import torch

from pcd_hub.errors import StudentError
from pcd_hub.models.backbone_in_file import find_backbone

STATE = timm.create_model("test_resnet", num_classes=0).state_dict()
HEAD = {"fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}


def under(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("loaded", "prefix", "unused"),
    [
        (STATE, "", ""),
        (STATE | HEAD, "", "fc.* (2)"),
        ({"state_dict": under("module.", STATE | HEAD)}, "state_dict.module.", None),
        ({"model": under("backbone.", STATE), "epoch": 3, "args": None}, "model.backbone.", ""),
        (under("student.model.", STATE), "student.model.", ""),
        (under("encoder.", STATE) | under("decoder.", HEAD), "encoder.", "decoder.* (2)"),
        ({"model": STATE, "model_ema": {"module": {**STATE}}}, "model_ema.module.", None),
        ({"state_dict": STATE, "state_dict_ema": {**STATE}}, "state_dict_ema.", None),
        (
            {"state_dict": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
            "state_dict.",
            "optimizer.* (1)",
        ),
    ],
)
def test_the_prefix_with_most_keys_is_used_and_leftovers_are_listed(loaded, prefix, unused):
    found = find_backbone(loaded, STATE, what="test_resnet")
    assert found.prefix == prefix
    assert list(found.state) == list(STATE)
    assert all(found.state[key] is value for key, value in STATE.items())
    assert unused is None or found.unused == unused


def test_leftovers_are_named_from_where_they_leave_the_prefix():
    loaded = {"state_dict": under("net.backbone.", STATE) | under("net.head.", HEAD)}
    assert find_backbone(loaded, STATE, what="x").unused == "state_dict.net.head.* (2)"
    many = STATE | {f"head_{number}.weight": torch.zeros(1) for number in range(9)}
    assert find_backbone(many, STATE, what="x").unused.endswith("(1), 4 more")


def test_counters_of_batch_norms_may_be_missing():
    old = {key: value for key, value in STATE.items() if not key.endswith("num_batches_tracked")}
    assert find_backbone(old, STATE, what="test_resnet").state.keys() == old.keys()


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ({}, "test_resnet: expected timm's keys, such as conv1.0.weight, found no tensors"),
        ([STATE], "found no tensors"),
        ({"a": {"b": torch.zeros(1)}, "c": torch.zeros(1)}, r"found a\.\* \(1\), c \(1\)"),
        (
            under("module.", {k: v for k, v in STATE.items() if not k.startswith("layer4")}),
            r"of its \d+ tensors are missing below 'module.' \(first layer4.0.conv1.weight, layer4",
        ),
        (
            under("net.", STATE | {"layer1.7.conv1.weight": torch.zeros(1)}),
            "1 tensors below 'net.' are of layers that it does not have .first layer1.7.conv1",
        ),
        (
            under("teacher.", STATE) | under("student.", STATE),
            "2 backbones are below 'teacher.', 'student.'; save the state dict of one",
        ),
    ],
)
def test_a_file_without_exactly_one_backbone_is_refused(loaded, message):
    with pytest.raises(StudentError, match=message):
        find_backbone(loaded, STATE, what="test_resnet")


def test_a_prefix_can_be_given_or_preferred():
    loaded = under("teacher.", STATE) | under("student.", STATE)
    found = find_backbone(loaded, STATE, what="x", preferred=[r"^momentum\.", r"^teacher\."])
    assert found.prefix == "teacher."
    assert find_backbone(loaded, STATE, what="x", prefix="student.").prefix == "student."
    with pytest.raises(StudentError, match="are missing below 'none.'"):
        find_backbone(loaded, STATE, what="x", prefix="none.")


def test_containers_without_end_are_read_once():
    loop: dict = {"x": torch.zeros(1)}
    loop[""] = loop["again"] = loop
    deep: dict = {}
    for _ in range(100_000):
        deep = {"": deep}
    wide: dict = STATE
    for _ in range(8):
        wide = dict.fromkeys(map(str, range(50)), wide)
    for hostile in (loop, deep, wide):
        with pytest.raises(StudentError):
            find_backbone({"a": hostile, "." * 10**6: torch.zeros(1)}, STATE, what="x")
