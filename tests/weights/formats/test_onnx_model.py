"""An exported ONNX file as a frozen model of the probe."""

import sys

import pytest
import timm
import torch

from pcd_hub.errors import PCDHubError, StudentError, WeightError
from pcd_hub.evaluate.feature_maps import feature_extractor
from pcd_hub.evaluate.models import check_models, open_model
from pcd_hub.evaluate.stage_features import StageFeatures
from tests.weights.formats.test_export import close, export, source
from tests.weights.formats.test_integrations import needs_onnx
from tests.weights.making import exported

pytestmark = pytest.mark.filterwarnings("default")  # of the packages


@needs_onnx
def test_the_probe_sees_the_features_of_the_weight(tmp_path):
    weight = source(tmp_path, "test_resnet")
    (file,) = export(weight, "onnx", tmp_path).glob("*.onnx")
    check_models([f"onnx:{file}"], (0,))
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    found, expected = (
        StageFeatures(one.model, num_stages=3, mean=one.mean, std=one.std)(images)
        for one in (open_model(f"onnx:{file}"), open_model(f"local-dir:{weight}"))
    )
    assert close(found, expected)
    with pytest.raises(StudentError, match="cannot be trained"):
        open_model(f"onnx:{file}", features_only=True)
    with pytest.raises(PCDHubError) as caught:
        feature_extractor(open_model(f"onnx:{file}"), 64)
    assert "\n" not in str(caught.value)


@needs_onnx
def test_a_file_for_one_size_says_which(tmp_path):
    model = timm.create_model("test_vit", num_classes=0, img_size=64)
    weight = exported(tmp_path / "weight", "test_vit", model, image_size=64)
    folder = export(weight, "onnx", tmp_path)
    assert "Images: 64 x 64 pixels only. Outputs:" in (folder / "README.md").read_text()
    opened = open_model(f"onnx:{next(folder.glob('*.onnx'))}")
    stages = StageFeatures(opened.model, num_stages=1, mean=opened.mean, std=opened.std)
    assert stages(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)) is not None
    with pytest.raises(WeightError, match="images of 64 x 64 px only, found 96 x 64; use its size"):
        stages(torch.zeros(1, 3, 96, 64, dtype=torch.uint8))


@needs_onnx
def test_files_that_are_no_export_are_one_line(tmp_path):
    import onnx

    weight = source(tmp_path, "test_resnet")
    pooled = export(weight, "onnx", tmp_path, pooled=True)
    (file,) = pooled.glob("*.onnx")
    with pytest.raises(WeightError, match="export without --pooled"):
        open_model(f"onnx:{file}")
    model = onnx.load(file)
    del model.metadata_props[:]
    foreign = tmp_path / "foreign.onnx"
    onnx.save(model, foreign)
    with pytest.raises(WeightError, match=r"foreign\.onnx does not state mean and std"):
        open_model(f"onnx:{foreign}")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(WeightError, match="onnxruntime cannot read it") as caught:
        open_model(f"onnx:{tmp_path / 'broken.onnx'}")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightError, match="no file"):
        check_models([f"onnx:{tmp_path / 'nothing.onnx'}"], (0,))


def test_onnxruntime_is_named_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WeightError, match=r"needs onnxruntime.*pip install"):
        open_model(f"onnx:{tmp_path / 'x.onnx'}")
