"""Weights in other frameworks: their features are timm's."""

import json

import pytest
import timm
import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import pcd_hub
from pcd_hub import WeightError, cli
from pcd_hub.weights.formats.architectures import (
    DETECTRON2,
    MMDET,
    TORCHVISION,
    TRANSFORMERS,
    ULTRALYTICS,
)
from pcd_hub.weights.formats.key_maps import new_names
from pcd_hub.weights.input_bands import InputBands
from pcd_hub.weights.manifest import weights_sha256
from tests.weights.making import exported

SIZES = ((2, 3, 64, 64), (1, 3, 96, 160))


def source(tmp_path, architecture="resnet18"):
    """A weight whose batch norms are not those of a new model."""
    model = timm.create_model(architecture, num_classes=0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "running_var", "bias", "bn1.weight", "gamma")):
                value.uniform_(0.5, 1.5)
    return exported(tmp_path / "weight", architecture, model=model)


def export(weight, to, tmp_path, **options):
    return pcd_hub.export(f"local-dir:{weight}", to=to, out=tmp_path / to, **options)


def features(weight, images, **options):
    return pcd_hub.create_model(f"local-dir:{weight}", **options).eval()(images)


def loaded(folder):
    (file,) = folder.glob("*.pth")
    return torch.load(file, weights_only=True)


def close(one, other, tolerance=1e-5):
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


@pytest.mark.parametrize(
    ("architecture", "head"), [("resnet18", "fc"), ("convnext_tiny", "classifier")]
)
@torch.no_grad()
def test_torchvision_loads_it_strictly_and_has_timms_features(tmp_path, architecture, head):
    weight = source(tmp_path, architecture)
    ours = pcd_hub.create_model(f"local-dir:{weight}")
    model = torchvision.models.get_model(architecture)
    if head == "fc":
        model.fc = torch.nn.Identity()
    else:
        model.classifier[2] = torch.nn.Identity()
        for module in model.modules():  # random also in timm's train mode
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0
    model.load_state_dict(loaded(export(weight, "torchvision", tmp_path)))
    for training in (False, True):
        for size in SIZES:
            images = torch.rand(size)
            assert close(model.train(training)(images), ours.train(training)(images))


@torch.no_grad()
def test_torchvisions_detectors_have_timms_feature_maps(tmp_path):
    weight = source(tmp_path)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    backbone.body.load_state_dict(loaded(export(weight, "torchvision", tmp_path)))
    images = torch.rand(1, 3, 64, 96)
    expected = features(weight, images, features_only=True)[1:]
    for one, other in zip(backbone.body(images).values(), expected, strict=True):
        assert close(one, other)
    assert FasterRCNN(backbone, num_classes=2).eval()([images[0]])[0]["boxes"].shape[1] == 4


def test_every_resnet_has_all_names_of_torchvision():
    for architecture, found in TORCHVISION.items():
        with torch.device("meta"):
            theirs = torchvision.models.get_model(architecture).state_dict()
            ours = timm.create_model(architecture, num_classes=0).state_dict()
        last = ("classifier.2.", "fc.")
        expected = {name for name in theirs if not name.startswith(last)}
        assert set(new_names(ours, found.keys).values()) == expected, architecture


# Written from detectron2 0.6, modeling/backbone/resnet.py: stem, BasicBlock, FrozenBatchNorm2d.
NORM = ("weight", "bias", "running_mean", "running_var")
DETECTRON2_R18 = {
    name
    for conv in (
        "stem.conv1",
        *(f"res{s}.{b}.conv{c}" for s in range(2, 6) for b in (0, 1) for c in (1, 2)),
        *(f"res{s}.0.shortcut" for s in range(3, 6)),
    )
    for name in (f"{conv}.weight", *(f"{conv}.norm.{part}" for part in NORM))
}


def test_detectron2s_names_are_the_published_ones(tmp_path):
    weight = source(tmp_path)
    folder = export(weight, "detectron2", tmp_path)
    checkpoint = loaded(folder)
    assert set(checkpoint["model"]) == DETECTRON2_R18
    assert checkpoint["matching_heuristics"] is True
    tensors = pcd_hub.create_model(f"local-dir:{weight}").state_dict()
    for ours, theirs in (
        ("conv1.weight", "stem.conv1.weight"),
        ("layer1.1.bn2.running_var", "res2.1.conv2.norm.running_var"),
        ("layer4.0.downsample.1.bias", "res5.0.shortcut.norm.bias"),
    ):
        assert torch.equal(checkpoint["model"][theirs], tensors[ours])
    text = (folder / "README.md").read_text()
    assert 'INPUT: {FORMAT: "RGB"}' in text
    assert "PIXEL_MEAN: [123.675, 116.28, 103.53]" in text
    assert "DEPTH: 18, RES2_OUT_CHANNELS: 64" in text


def test_mmdets_names_are_the_published_ones(tmp_path):
    folder = export(source(tmp_path), "mmdet", tmp_path)
    state = loaded(folder)["state_dict"]
    assert "layer2.0.downsample.1.running_var" in state
    assert "mean=[123.675, 116.28, 103.53]" in (folder / "README.md").read_text()
    with torch.device("meta"):
        names = timm.create_model("resnet18d", num_classes=0).state_dict()
    deep = set(new_names(names, MMDET["resnet18d"].keys).values())
    assert {"stem.0.weight", "stem.6.weight", "stem.7.running_mean"} <= deep
    assert {"layer2.0.downsample.1.weight", "layer2.0.downsample.2.weight"} <= deep
    assert not any(name.startswith(("conv1", "bn1")) for name in deep)


def ultralytics_layers(folder):
    """torchvision's ResNet as ultralytics unwraps it, with the tensors of the file."""
    (file,) = folder.glob("*.pt")
    state = torch.load(file, weights_only=False)["model"].state_dict()
    layers = torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    layers.load_state_dict({name.removeprefix("model.0.m."): state[name] for name in state})
    return layers


@torch.no_grad()
def test_ultralytics_has_timms_maps_inside_images_that_are_not_normalised(tmp_path):
    weight = source(tmp_path)
    folder = export(weight, "ultralytics", tmp_path)
    layers = ultralytics_layers(folder).eval()
    cfg = timm.create_model("resnet18").pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    for size in ((2, 3, 160, 192), (1, 3, 224, 160)):
        images = torch.rand(size)
        expected = features(weight, (images - mean) / std, features_only=True)
        for layer, stage, margin in ((5, 1, 16), (6, 2, 8)):  # strides 4 and 8
            found = layers[:layer](images)
            inside = (..., slice(margin, -margin), slice(margin, -margin))
            assert close(found[inside], expected[stage][inside])
            assert not close(found, expected[stage])  # the padding is black
    text = (folder / "yolo_resnet18.yaml").read_text()
    assert "TorchVision, [512, resnet18, null, True, 2, True]" in text
    assert "(in the file's tensors)" in (folder / "README.md").read_text()


@torch.no_grad()
def test_timm_loads_its_folder_without_pcd_hub(tmp_path):
    weight = source(tmp_path, "test_resnet")
    folder = export(weight, "timm", tmp_path)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(SIZES[0])
    assert torch.equal(model(images), features(weight, images))
    assert "pcd" not in json.loads((folder / "config.json").read_text())


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:FutureWarning")
@torch.no_grad()
def test_torchscript_has_timms_features_at_another_size(tmp_path):
    weight = source(tmp_path, "test_resnet")
    (file,) = export(weight, "torchscript", tmp_path).glob("*.pt")
    network = torch.jit.load(file)
    for size in SIZES:
        images = torch.rand(size)
        for one, other in zip(
            network(images), features(weight, images, features_only=True), strict=True
        ):
            assert close(one, other)


def test_the_readme_states_the_source(tmp_path):
    weight = source(tmp_path, "test_resnet")
    text = (export(weight, "timm", tmp_path) / "README.md").read_text()
    assert weights_sha256(weight) in text
    assert "| licence of the weights | apache-2.0 |" in text
    assert "| mean | [0.485, 0.456, 0.406] |" in text


@pytest.mark.parametrize("to", ["torchvision", "detectron2", "mmdet", "ultralytics"])
def test_what_the_framework_does_not_have_is_one_line(tmp_path, to):
    with pytest.raises(WeightError, match=f"{to} has no test_resnet, it has resnet18") as caught:
        export(source(tmp_path, "test_resnet"), to, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / to).exists()


def test_other_bands_are_refused_where_the_framework_has_none(tmp_path):
    bands = InputBands(("red", "green", "blue", "nir"), (0.5,) * 4, (0.2,) * 4)
    model = timm.create_model("resnet18", num_classes=0, in_chans=4)
    weight = exported(tmp_path / "weight", "resnet18", model=model, bands=bands)
    for to in ("torchvision", "ultralytics"):
        with pytest.raises(WeightError, match="takes images of 3 channels, this weight of 4"):
            export(weight, to, tmp_path)


@pytest.mark.parametrize("to", ["detectron2", "mmdet", "transformers", "timm"])
@pytest.mark.parametrize("names", [("nir", "red", "green"), ("red", "green", "blue", "nir")])
def test_other_bands_are_described_as_they_are_read(tmp_path, to, names):
    bands = InputBands(names, (0.5,) * len(names), (0.2,) * len(names))
    model = timm.create_model("resnet18", num_classes=0, in_chans=len(names))
    data = {"source": "fields", "bands": list(names), "band_range": [0.0, 10000.0]}
    weight = exported(tmp_path / "weight", "resnet18", model=model, bands=bands, data=data)
    folder = export(weight, to, tmp_path)
    text = (folder / "README.md").read_text()
    assert f"| channel order | {', '.join(names)} |" in text
    assert "0 to 1; their values 0.0 to 10000.0 scaled to 0 to 1 |" in text
    assert f"| mean | {[0.5] * len(names)} |" in text
    for wrong in ("BGR", "RGB", "bgr_to_rgb=True", "AutoImageProcessor.from", "create_transform"):
        assert wrong not in text
    assert not (folder / "preprocessor_config.json").exists()
    if to == "mmdet":
        assert ("in_channels=4" in text) == (len(names) == 4)


@pytest.mark.filterwarnings("default")  # torch.jit.load is deprecated
@pytest.mark.parametrize("to", ["torchvision", "timm", "torchscript"])
def test_the_lines_of_the_readme_run_from_a_folder_of_any_name(tmp_path, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    weight = source(tmp_path, "resnet18")
    folder = pcd_hub.export(weight, to=to, out=tmp_path / 'it\'s "new" \\n ü')
    code = (folder / "README.md").read_text(encoding="utf-8").split("```")[1]
    exec(code.removeprefix("python"), {"images": torch.zeros(1, 3, 64, 64)})


def test_other_bands_are_described_in_transformers_wrapper_of_timm(tmp_path):
    bands = InputBands(("nir", "red", "green"), (0.5,) * 3, (0.2,) * 3)
    data = {"source": "fields", "bands": list(bands.names), "band_range": [0.0, 10000.0]}
    weight = exported(tmp_path / "weight", "test_resnet", bands=bands, data=data)
    text = (export(weight, "transformers", tmp_path) / "README.md").read_text()
    assert "# needs timm" in text
    assert "the bands nir, red, green in this order, their values 0.0 to 10000.0 scaled" in text
    assert "AutoImageProcessor.from" not in text


def test_a_framework_that_reads_rgb_alone_refuses_three_other_bands(tmp_path):
    bands = InputBands(("nir", "red", "green"), (0.5,) * 3, (0.2,) * 3)
    data = {"source": "fields", "bands": list(bands.names)}
    weight = exported(tmp_path / "weight", "resnet18", bands=bands, data=data)
    with pytest.raises(WeightError, match="reads images as RGB, this weight takes nir, red, green"):
        export(weight, "ultralytics", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "detectron"}, "expected one of .*did you mean 'detectron2'"),
        ({"to": "onnx", "opset": 9}, "--opset 9: expected 18 to"),
        (
            {"to": "timm", "pooled": True},
            "--pooled belongs to onnx, torchscript and executorch, not",
        ),
        ({"to": "timm", "precision": "float16"}, "--precision belongs to onnx, not to timm"),
        ({"to": "timm", "opset": 20}, "--opset belongs to onnx, not to timm"),
        ({"to": "onnx", "precision": "int4"}, "--precision int4: expected one of .*'int8'"),
        ({"to": "onnx", "precision": "int8"}, "no images; expected --calibration FOLDER, 32 or"),
        ({"to": "onnx", "calibration": "x"}, "--calibration belongs to .*int8, not to float32"),
        (
            {"to": "onnx", "precision": "float16", "num_calibration_images": 64},
            "--calibration-images belongs to --precision int8, not to float16",
        ),
        (
            {"to": "onnx", "precision": "int8", "calibration": "x", "num_calibration_images": 3},
            "--calibration-images 3: expected an integer >= 16",
        ),
        ({"to": "onnx", "max_size": 256}, "--max-size belongs to executorch, not to onnx"),
        ({"to": "executorch", "max_size": 64}, "--max-size 64: expected 128 to 4096 pixels"),
        ({"to": "timm", "out": "."}, "exists already"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(WeightError, match=message) as caught:
        pcd_hub.export("nothing", **{"out": tmp_path / "new", **options})
    assert "\n" not in str(caught.value)


def test_the_command_prints_the_readme(tmp_path, capsys):
    weight = source(tmp_path)
    cli.main(["export", f"local-dir:{weight}", "--to", "mmdet", str(tmp_path / "out")])
    assert 'dict(type="ResNet", depth=18' in capsys.readouterr().out
    cli.main(["export", f"local-dir:{weight}", "--to", "timm", str(tmp_path / "two"), "--json"])
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == ["README.md", "config.json", "model.safetensors"]


def test_the_tables_hold_architectures_of_timm():
    for table in (TORCHVISION, DETECTRON2, MMDET, TRANSFORMERS, ULTRALYTICS):
        assert all(map(timm.is_model, table))


def test_the_example_for_torchvision_runs_as_it_is_written(tmp_path):
    weight = source(tmp_path, "resnet18")
    folder = pcd_hub.export(f"local-dir:{weight}", to="torchvision", out=tmp_path / "exported")
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(code, {})
