"""Weights in the packages of the extra ``integrations``; skipped where a package is missing."""

import importlib.util

import pytest
import timm
import torch

import pcd_hub
from pcd_hub import WeightError
from tests.weights.formats.test_export import SIZES, close, export, features, source

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="onnx, onnxscript or onnxruntime is missing",
)
pytestmark = pytest.mark.filterwarnings("default")  # of the packages


def run_onnx(folder, images):
    import onnxruntime

    (file,) = folder.glob("*.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(one) for one in session.run(None, {"images": images.numpy()})]


@needs_onnx
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 2e-2)])
@torch.no_grad()
def test_onnx_has_timms_feature_maps_at_other_sizes(tmp_path, precision, tolerance):
    weight = source(tmp_path, "test_resnet")
    folder = export(weight, "onnx", tmp_path, precision=precision)
    for size in SIZES:
        images = torch.rand(size)
        found = run_onnx(folder, images)
        for one, other in zip(found, features(weight, images, features_only=True), strict=True):
            assert one.dtype == torch.float32
            assert close(one, other, tolerance)
    text = (folder / "README.md").read_text()
    assert "Opset 18" in text
    assert f"| precision | {precision}" in text
    assert "| measured difference | largest " in text


@needs_onnx
@torch.no_grad()
def test_onnx_pooled_has_timms_embedding_and_the_opset_asked_for(tmp_path):
    import onnx

    weight = source(tmp_path, "test_resnet")
    folder = export(weight, "onnx", tmp_path, pooled=True, opset=20)
    images = torch.rand(SIZES[1])
    (found,) = run_onnx(folder, images)
    assert close(found, features(weight, images), 1e-4)
    (file,) = folder.glob("*.onnx")
    assert [one.version for one in onnx.load(file).opset_import if not one.domain] == [20]


def test_onnx_names_the_package_that_is_missing(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(WeightError, match=r"needs onnx.*pip install \"\.\[integrations\]\""):
        export(source(tmp_path, "test_resnet"), "onnx", tmp_path)


@torch.no_grad()
def test_transformers_own_resnet_has_timms_feature_maps(tmp_path):
    transformers = pytest.importorskip("transformers")
    weight = source(tmp_path)
    folder = export(weight, "transformers", tmp_path)
    backbone = transformers.ResNetBackbone.from_pretrained(folder, out_indices=(1, 2, 3, 4))
    model, loading = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for size in SIZES:
        images = torch.rand(size)
        maps = features(weight, images, features_only=True)[1:]
        for one, other in zip(backbone.eval()(images).feature_maps, maps, strict=True):
            assert close(one, other)
        pooled = model.eval()(images).pooler_output.flatten(1)
        assert close(pooled, features(weight, images))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert [round(float(value), 3) for value in processor.image_mean] == [0.485, 0.456, 0.406]


@torch.no_grad()
def test_transformers_loads_other_architectures_through_timm(tmp_path):
    transformers = pytest.importorskip("transformers")
    weight = source(tmp_path, "test_resnet")
    model = transformers.AutoModel.from_pretrained(export(weight, "transformers", tmp_path))
    images = torch.rand(SIZES[0])
    assert close(model.eval()(images).pooler_output, features(weight, images))


@torch.no_grad()
def test_mmengine_loads_it_by_init_cfg(tmp_path):
    mmengine = pytest.importorskip("mmengine")
    from mmengine.model import BaseModule

    weight = source(tmp_path)
    (file,) = export(weight, "mmdet", tmp_path).glob("*.pth")

    class Backbone(BaseModule):  # mmdet's ResNet has the names of timm's
        def __init__(self):
            super().__init__(init_cfg={"type": "Pretrained", "checkpoint": str(file)})
            for name, child in timm.create_model("resnet18", num_classes=0).named_children():
                self.add_module(name, child)

    assert mmengine.__version__
    backbone = Backbone()
    backbone.init_weights()
    tensors = pcd_hub.create_model(f"local-dir:{weight}").state_dict()
    assert all(torch.equal(value, tensors[key]) for key, value in backbone.state_dict().items())


@torch.no_grad()
def test_smp_takes_the_torchvision_state_dict(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    weight = source(tmp_path)
    (file,) = export(weight, "torchvision", tmp_path).glob("*.pth")
    unet = smp.Unet("resnet18", encoder_weights=None)
    state = torch.load(file, weights_only=True)
    torch.nn.Module.load_state_dict(unet.encoder, state)  # smp's own drops a classifier
    images = torch.rand(1, 3, 64, 96)
    maps = features(weight, images, features_only=True)
    for one, other in zip(unet.eval().encoder(images)[1:], maps, strict=True):
        assert close(one, other)
