"""ONNX in int8: the calibration images, and features near timm's."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from pcd_hub.errors import DataError, WeightError
from pcd_hub.weights.formats.calibration import read_calibration
from pcd_hub.weights.formats.graphs import Difference, measure
from pcd_hub.weights.input_bands import InputBands
from pcd_hub.weights.load import read_weight
from tests.weights.formats.test_export import close, export, features, source
from tests.weights.formats.test_integrations import needs_onnx, run_onnx
from tests.weights.making import exported

FEW = {"num_calibration_images": 16}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty smooth images, each with a level of its own."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(40):
        pixels = random.integers(0, 256, (4, 6, 3), np.uint8)
        Image.fromarray(pixels).resize((60, 40)).save(folder / f"{number:02}.png")
    return folder


def test_calibration_and_comparison_share_no_image_and_are_drawn_alike(tmp_path, photos):
    weight = read_weight(source(tmp_path, "test_resnet"))
    one, two = (read_calibration(weight, photos, num_images=20) for _ in range(2))
    assert one.images.shape == (20, 3, 224, 224)
    assert torch.equal(one.images, two.images)
    sums = {int(image.sum()) for image in torch.cat([one.images, one.compared])}
    assert len(sums) == len(one.images) + len(one.compared) == 36
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(one.mean)) / torch.tensor(one.std)
    assert torch.allclose(one.normalised(white)[0, :, 0, 0], expected)
    assert len(read_calibration(weight, photos, num_images=None).images) == 40 - 16


def test_too_few_calibration_images_are_one_line(tmp_path, photos):
    weight = read_weight(source(tmp_path, "test_resnet"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(31):
        shutil.copy(photos / f"{number:02}.png", folder)
    with pytest.raises(DataError, match="found 31 images, expected at least 32") as caught:
        read_calibration(weight, folder, num_images=None)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"--calibration: no folder .*nothing"):
        read_calibration(weight, tmp_path / "nothing", num_images=None)


def test_an_unreadable_calibration_image_is_named_in_one_line(tmp_path, photos):
    weight = read_weight(source(tmp_path, "test_resnet"))
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "07.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"--calibration: .*07\.png: .*remove or repair") as caught:
        read_calibration(weight, folder, num_images=None)
    assert "\n" not in str(caught.value)


def test_a_weight_of_other_bands_is_refused(tmp_path, photos):
    bands = InputBands(("red", "green", "blue", "nir"), (0.5,) * 4, (0.2,) * 4)
    model = timm.create_model("test_resnet", num_classes=0, in_chans=4)
    weight = read_weight(exported(tmp_path / "weight", "test_resnet", model=model, bands=bands))
    with pytest.raises(WeightError, match="takes 4 channels; use float16"):
        read_calibration(weight, photos, num_images=None)


def test_a_weight_of_three_other_bands_is_refused_too(tmp_path, photos):
    bands = InputBands(("nir", "red", "green"), (0.5,) * 3, (0.2,) * 3)
    data = {"source": "fields", "bands": list(bands.names)}
    weight = read_weight(exported(tmp_path / "weight", "test_resnet", bands=bands, data=data))
    with pytest.raises(WeightError, match="are RGB, not nir, red, green, .* takes 3 channels; use"):
        read_calibration(weight, photos, num_images=None)


def test_the_difference_is_that_of_the_worst_output():
    network = torch.nn.Identity()
    images = torch.tensor([3.0, -4.0])
    difference = measure(lambda one: [one + torch.tensor([0.0, 1.0])], network, [images, images])
    assert difference == Difference(largest=0.25, rms=0.2)
    nan = measure(lambda one: [one * torch.nan], network, [images])
    assert nan == Difference(float("inf"), float("inf"))


@needs_onnx
@torch.no_grad()
def test_int8_is_small_and_near_timms_features_at_another_size(tmp_path, photos):
    import onnx

    weight = source(tmp_path, "test_resnet")
    folder = export(weight, "onnx", tmp_path, precision="int8", calibration=photos, **FEW)
    (file,) = folder.glob("*.onnx")
    model = onnx.load(file)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    stored = {one.name: one for one in model.graph.initializer}
    kernels = [one for one in stored.values() if len(one.dims) == 4]
    assert {one.data_type for one in kernels} == {onnx.TensorProto.INT8}
    scales = [one.dims[0] for name, one in stored.items() if name.endswith("weight_scale")]
    assert sorted(scales) == sorted(one.dims[0] for one in kernels)  # one scale per channel
    calibration = read_calibration(read_weight(weight), photos, num_images=None)
    images = calibration.normalised(calibration.compared)[:, :, :64, :96]
    found = run_onnx(folder, images)
    for one, other in zip(found, features(weight, images, features_only=True), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.2 * other.norm()
        assert not close(one, other)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["pcd_hub.precision"] == "int8"
    assert json.loads(facts["pcd_hub.mean"]) == [0.485, 0.456, 0.406]
    text = (folder / "README.md").read_text()
    assert "16 calibration images of 224 x 224 px; compared with timm's features on 16" in text
    assert "| precision | int8 weights per channel and uint8 activations" in text


@needs_onnx
def test_int8_that_is_of_no_use_is_refused(tmp_path, photos, monkeypatch):
    monkeypatch.setattr("pcd_hub.weights.formats.onnx_files.INT8_LIMIT", 1e-6)
    weight = source(tmp_path, "test_resnet")
    with pytest.raises(WeightError, match="the features differ from timm's by .*or float16"):
        export(weight, "onnx", tmp_path, precision="int8", calibration=photos, **FEW)
    assert not (tmp_path / "onnx").exists()


def test_int8_names_onnxruntime_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object()
    )
    weight = source(tmp_path, "test_resnet")
    with pytest.raises(WeightError, match=r"needs onnxruntime.*pip install"):
        export(weight, "onnx", tmp_path, precision="int8", calibration="nothing")
