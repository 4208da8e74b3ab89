"""From a finished run to a folder of the package."""

import json

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import pcd_hub
import ship
from pcd_hub.errors import WeightError
from pcd_hub.weights import shipped, store
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import write_manifest
from tests.weights.making import exported, flip

NAME = "test_resnet.pcd"


@pytest.fixture
def model():
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    return model


@pytest.fixture
def export(tmp_path, model):
    return exported(tmp_path / "run" / "export", model=model)


def test_kernels_are_rounded_unless_float16_cannot_hold_them():
    kernel = torch.randn(4, 3, 3, 3)
    tensors = {
        "kernel": kernel,
        "zeros": torch.zeros(2, 2),
        "none": torch.zeros(0, 2),
        "large": kernel * 1e5,
        "tiny": kernel * 1e-6,
        "vector": torch.randn(4),
        "variance": torch.full((4,), 1e-9),
        "count": torch.tensor(7),
        "integers": torch.ones(2, 2, dtype=torch.int64),
        "double": kernel.double(),
    }
    rounded = ship.to_float16(tensors)
    halves = {name for name, value in rounded.items() if value.dtype == torch.float16}
    assert halves == {"kernel", "zeros"}
    for name in tensors.keys() - halves:
        assert rounded[name] is tensors[name]
    assert (rounded["kernel"].float() - kernel).abs().max() <= 2**-11 * kernel.abs().max()


def test_a_run_becomes_a_shipped_weight_that_loads_as_float32(export, model):
    done = ship.ship(export.parent)
    assert done.folder == shipped.FOLDER / NAME == pcd_hub.where(NAME)
    assert done.num_bytes < 0.6 * sum(path.stat().st_size for path in export.iterdir())
    assert 0 < done.feature_change < ship.FEATURE_TOLERANCE
    assert done.float32 == ()
    expected = {
        key: value.half().float() if value.dim() > 1 else value
        for key, value in model.state_dict().items()
    }
    stored = read_weight(done.folder).tensors
    assert stored["conv1.0.weight"].dtype == torch.float16
    for loaded in (
        pcd_hub.create_model(NAME),
        timm.create_model(f"local-dir:{done.folder}", pretrained=True),
    ):
        for key, value in loaded.state_dict().items():
            assert value.dtype == model.state_dict()[key].dtype
            assert torch.equal(value, expected[key])
    features = pcd_hub.create_model(NAME, features_only=True)
    assert {value.dtype for value in features.parameters()} == {torch.float32}


def test_the_timm_entry_gives_float32(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("resnet18", num_classes=0)
    ship.ship(exported(tmp_path / "export", "resnet18", model))
    features = timm.create_model("resnet18.pcd", pretrained=True, features_only=True)
    for name, value in features.named_parameters():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, model.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_card_and_record_state_what_is_shipped(export, tmp_path):
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "pca.png")
    arguments = [str(export), "--out", str(tmp_path / "out"), "--name", f"{NAME}_photos"]
    arguments += ["--picture", str(tmp_path / "pca.png"), "--pictures", "photographs (A, cc0-1.0)"]
    arguments += ["--teacher", "a net, supervised", "--data", "photographs of A"]
    assert ship.main([*arguments, "--note", "Compare it with *others*.", "--note", "Two."]) == 0
    out = tmp_path / "out"
    assert (out / "pca.png").read_bytes() == (tmp_path / "pca.png").read_bytes()
    card = (out / "README.md").read_text()
    for expected in (
        f"# {NAME}_photos",
        "MB (stored as float16, loaded as float32)",
        "import pcd_hub, timm  # pcd_hub brings the weight",
        f'timm.create_model("{NAME}_photos", pretrained=True, features_only=True)',
        "in the manifest of the package",
        "- Teacher: a net, supervised: quickstart, resnet10t, head Linear",
        "- Data: photographs of A: scenes:6400, 6400 images",
        "The images are photographs (A, cc0-1.0).",
        "- Compare it with \\*others\\*.\n- Two.",
    ):
        assert expected in card, expected
    assert "@COMMIT" not in card
    weight = read_weight(out)
    assert weight.config["pretrained_cfg"]["tag"] == "pcd_photos"
    assert weight.record.model["stored_as"] == "float16"
    assert len(weight.record.model["features"]) == 8
    assert weight.record.metrics == read_weight(export).record.metrics


def test_a_record_without_notes_keeps_its_bytes(export):
    assert not {"notes", "pictures"} & read_weight(export).record.to_dict().keys()


def test_mistakes_are_one_line_and_leave_nothing(export, tmp_path, capsys, monkeypatch):
    (tmp_path / "there").mkdir()
    for arguments, message in (
        ([str(export), "--out", str(tmp_path / "there")], "there exists already"),
        ([str(export), "--name", "resnet18.pcd"], "expected test_resnet.pcd or test_resnet.pcd_W"),
        ([str(export), "--license", "mit"], "contradicts the record"),
        ([str(tmp_path / "no")], "neither the folder of a run nor"),
        ([str(export), "--picture", str(tmp_path / "no.png")], "No such file"),
    ):
        assert ship.main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    monkeypatch.setattr(
        ship, "to_float16", lambda tensors: {n: t * 0.9 for n, t in tensors.items()}
    )
    assert ship.main([str(export)]) == 2
    assert "float16 changes the features" in capsys.readouterr().err
    flip(export / "model.safetensors")
    assert ship.main([str(export)]) == 2
    assert "expected" in capsys.readouterr().err
    assert not shipped.names()
    assert not store.home().exists()


def test_a_licence_is_required(tmp_path):
    licenses = dict.fromkeys(("code", "weights", "teacher"), "mit") | {"data": "not stated"}
    export = exported(tmp_path / "export", licenses=licenses)
    with pytest.raises(WeightError, match="add --data-license ID"):
        ship.ship(export)
    done = ship.ship(export, licenses={"data": "cc0-1.0"})
    assert read_weight(done.folder).record.licenses["data"] == "cc0-1.0"


def test_no_local_paths_are_shipped(tmp_path):
    teacher = {"source": "local-dir:/home/ann/dino", "architecture": "x", "sha256": "a" * 64}
    folder = ship.ship(exported(tmp_path / "export", teacher=teacher)).folder
    assert read_weight(folder).record.teacher["source"] == "local-dir:dino"
    assert not [path for path in folder.iterdir() if b"/home/ann" in path.read_bytes()]


def test_a_shipped_weight_that_disagrees_with_its_record_is_found(export):
    folder = ship.ship(export).folder
    ship.check(folder)
    record = json.loads((folder / "pcd_manifest.json").read_text())["record"]
    (folder / "README.md").write_text("# mine")
    write_manifest(folder, record)
    with pytest.raises(WeightError, match="README.md is not rendered from the record"):
        ship.check(folder)
    record["model"]["features"][0] += 1
    config = json.loads((folder / "config.json").read_text())
    del config["pcd"]["record_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder, record)
    with pytest.raises(WeightError, match="has other features than its record"):
        ship.check(folder)
