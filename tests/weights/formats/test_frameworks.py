"""What the pages "Use it in ..." say of other packages; skipped where a package is missing."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml

import pcd_hub
from pcd_hub.weights import shipped
from tests.weights.formats.test_export import SIZES, close, export, source

SHIPPED = shipped.FOLDER
pytestmark = pytest.mark.filterwarnings("default")  # of the packages


@pytest.fixture(autouse=True)
def shipped_weights(monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", SHIPPED)


def weight():
    return timm.create_model("resnet18.pcd", pretrained=True, features_only=True)


def num_kept(network, state):
    """Count the kernels of ``state`` that a network holds under the same names."""
    own = network.state_dict()
    return sum(torch.equal(own[key].float(), value) for key, value in state.items())


def kernels(network):
    return {key: value for key, value in network.state_dict().items() if value.ndim == 4}


def detr(backbone):
    import transformers

    config = transformers.DetrConfig(
        backbone_config=backbone, num_labels=3, encoder_layers=1, decoder_layers=1, d_model=32
    )
    return transformers.DetrForObjectDetection(config).model.backbone


@torch.no_grad()
def test_detrs_configuration_leaves_the_backbone_random_and_a_copy_has_timms_maps():
    transformers = pytest.importorskip("transformers")
    features = weight().eval()
    for options in ({}, {"use_pretrained_backbone": True}):
        backbone = transformers.TimmBackboneConfig(
            backbone="resnet18.pcd", out_indices=[4], **options
        )
        encoder = detr(backbone).eval()
        assert num_kept(encoder.model, kernels(features)) == 0
    encoder.model.load_state_dict(features.state_dict())
    images = torch.rand(SIZES[0])
    ((found, _),) = encoder(images, torch.ones(images[:, 0].shape))
    assert close(found, features(images)[-1])
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_detr_freezes_all_of_transformers_own_resnet(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = pcd_hub.export("resnet18.pcd", to="transformers", out=tmp_path / "exported")
    backbone = transformers.ResNetBackbone.from_pretrained(folder, out_indices=(4,))
    encoder = detr(backbone.config)
    encoder.model.load_state_dict(backbone.state_dict())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_transformers_opens_a_weight_with_float16_kernels_in_float32(tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, model in (("resnet18.pcd", "ResNetBackbone"), ("mobilenetv4_conv_small.pcd", "")):
        folder = pcd_hub.export(name, to="transformers", out=tmp_path / name)
        opened = getattr(transformers, model or "AutoModel").from_pretrained(folder)
        assert {parameter.dtype for parameter in opened.parameters()} == {torch.float32}


@pytest.fixture
def yolo(tmp_path, monkeypatch):
    """The exported YOLO, and a drawn data set of one image per split."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    ultralytics = pytest.importorskip("ultralytics")
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    image = torchvision.transforms.functional.to_pil_image(torch.rand(3, 64, 64))
    image.save(tmp_path / "data" / "images" / "0.png")
    (tmp_path / "data" / "labels" / "0.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    content = {"path": str(tmp_path / "data"), "train": "images", "val": "images"}
    names = {number: f"class {number}" for number in range(3)}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({**content, "names": names}))
    folder = pcd_hub.export("resnet18.pcd", to="ultralytics", out=tmp_path / "exported")
    return ultralytics.YOLO(str(folder / "yolo_resnet18.yaml"))


def kept_at_the_start_of_training(model):
    """Train for an epoch; return how many of the file's kernels it began with."""
    state = torch.load("exported/resnet18.pcd.pt", weights_only=False)["model"].state_dict()
    expected = {name: value.float() for name, value in state.items() if value.ndim == 4}
    found = []

    def look(trainer):
        found.append(num_kept(trainer.model, expected))

    model.add_callback("on_pretrain_routine_end", look)
    options = {"workers": 0, "device": "cpu", "plots": False, "verbose": False, "val": False}
    options["project"] = str(Path("runs").resolve())
    model.train(data="data.yaml", epochs=1, imgsz=64, batch=1, **options)
    return found


def test_ultralytics_trains_from_the_weight_that_it_loads_from_the_file(yolo):
    assert kept_at_the_start_of_training(yolo.load("exported/resnet18.pcd.pt")) == [20]


def test_ultralytics_trains_from_random_tensors_without_the_file(yolo):
    assert kept_at_the_start_of_training(yolo) == [0]


@pytest.mark.parametrize("architecture", ["resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_ultralytics_loads_all_tensors_of_a_resnet_with_bottlenecks(
    tmp_path, monkeypatch, architecture
):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    ultralytics = pytest.importorskip("ultralytics")
    folder = export(source(tmp_path, architecture), "ultralytics", tmp_path)
    ((description,), (file,)) = folder.glob("*.yaml"), folder.glob("*.pt")
    model = ultralytics.YOLO(str(description)).load(str(file)).model
    state = torch.load(file, weights_only=False)["model"].state_dict()
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items())
    with torch.no_grad():
        assert len(model.train()(torch.rand(2, 3, 64, 64))) > 0
