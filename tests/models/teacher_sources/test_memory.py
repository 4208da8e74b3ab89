import json

import pytest
import timm
import torch

from pcd_hub.errors import TeacherError
from pcd_hub.models.teacher_sources import memory
from pcd_hub.models.teacher_sources.memory import (
    architecture_of,
    check_teacher_memory,
    estimate,
)
from tests.models.test_teachers import timm_folder

CPU = torch.device("cpu")


def check(source: str, batch_size: int = 8) -> str:
    return check_teacher_memory(source, image_size=224, batch_size=batch_size, device=CPU)


def test_the_estimate_is_that_of_the_real_model():
    found = estimate("resnet18", 224, 8)
    model = timm.create_model("resnet18", num_classes=0)
    assert found.weights == pytest.approx(4 * sum(p.numel() for p in model.parameters()), rel=0.01)
    stem = 8 * 64 * 112 * 112 * 4  # batch norm: the stem's map twice
    assert 2 * stem <= found.activations <= 3 * stem
    assert estimate("resnet18", 224, 16).activations == 2 * found.activations
    assert estimate("no_such_model", 224, 8) is None


def test_the_estimate_takes_no_random_numbers():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    estimate("test_vit", 160, 2)
    assert torch.equal(torch.rand(1), expected)


def test_an_impossible_teacher_is_refused_before_it_is_read(monkeypatch):
    """Of 300 M parameters, 1.1 GiB; its weights are nowhere."""
    monkeypatch.setattr(memory, "available_host_memory", lambda: 2**30)
    source = "timm:vit_large_patch14_dinov2.lvd142m"
    with pytest.raises(TeacherError, match=r"needs 1.1 GiB for its weights, but 1.0 GiB of host"):
        check(source)
    monkeypatch.setattr(memory, "available_host_memory", lambda: 2**31)
    assert check(source) == ""
    warning = check(source, batch_size=512)
    assert "for a batch of 512 images of 224 px, but 2.0 GiB of host memory are" in warning
    assert "reduce --optim.global-batch-size" in warning
    monkeypatch.setattr(memory, "available_host_memory", lambda: None)
    assert check(source, batch_size=10**6) == ""


def test_a_gpu_is_checked_as_well(monkeypatch):
    monkeypatch.setattr(memory, "available_host_memory", lambda: 2**40)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**34))
    with pytest.raises(TeacherError, match="1.0 GiB of GPU memory are available"):
        check_teacher_memory(
            "timm:vit_large_patch14_dinov2.lvd142m",
            image_size=224,
            batch_size=8,
            device=torch.device("cuda"),
        )


def test_the_architecture_is_known_before_loading(tmp_path):
    assert architecture_of("timm:resnet50.a1_in1k") == "resnet50"
    assert architecture_of("timm:test_vit.r160_in1k:/a/b:c.pth") == "test_vit"
    assert architecture_of("resnet:resnet50:file") == "resnet50"
    assert architecture_of("mocov3_vit_b:file") == "vit_base_patch16_224"
    assert architecture_of(f"local-dir:{timm_folder(tmp_path / 't')}") == "test_resnet"
    hub = {"model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12}
    (tmp_path / "config.json").write_text(json.dumps(hub | {"num_attention_heads": 6}))
    assert architecture_of(f"local-dir:{tmp_path}") == "vit_small_patch14_dinov2"
    (tmp_path / "teacher.json").write_text('{"architecture": "resnet34"}')
    assert architecture_of(f"local-dir:{tmp_path}") == "resnet34"
    for source in ("quickstart", "hf-hub:a/b", "local-dir:/nowhere", "auto"):
        assert architecture_of(source) is None
        assert check(source) == ""
