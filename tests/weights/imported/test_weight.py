"""An imported weight is used as any other, and says everywhere that pcd_hub did not train it."""

import json
import os

import pytest
import timm
import torch
import yaml

import pcd_hub
from pcd_hub import StudentError, WeightError, cli
from pcd_hub.evaluate.models import check_models, open_model
from pcd_hub.weights import store
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import read_manifest, sha256
from tests.cli.outcome import outcome
from tests.cli.test_json import result
from tests.hub.conftest import hub  # noqa: F401
from tests.hub.surroundings import point_client_at, settle
from tests.weights.making import exported, same_tensors

NAME = "test_resnet.imported"
TOKEN = "hf_" + "a1B2" * 9


@pytest.fixture
def model():
    return timm.create_model("test_resnet", num_classes=7)


@pytest.fixture
def file(tmp_path, model):
    path = tmp_path / "their run" / "model_final.pth"
    path.parent.mkdir()
    torch.save({"model": {f"net.{k}": v for k, v in model.state_dict().items()}}, path)
    return path


def test_it_loads_by_its_name_with_the_tensors_of_the_file(file, model):
    done = pcd_hub.import_weights(file, "test_resnet")
    assert (done.name, done.license) == (NAME, "not stated")
    assert done.folder == store.folder_of(NAME)
    model.reset_classifier(0)
    assert same_tensors(model, pcd_hub.create_model(NAME))
    assert len(pcd_hub.create_model(NAME, features_only=True)(torch.zeros(1, 3, 64, 64))) == 5
    check_models([NAME], [0])
    assert same_tensors(model, open_model(NAME).model)
    (listed,) = (weight for weight in pcd_hub.list_weights() if weight.origin == "local")
    assert listed.name == NAME


def test_the_folder_is_the_weights_where_the_store_has_no_links(file, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "symlink", refuse)
    done = pcd_hub.import_weights(file, "test_resnet")
    assert read_weight(done.folder).record.name == NAME


def test_record_and_card_state_the_file_and_no_training(file):
    done = pcd_hub.import_weights(file, "test_resnet", license="mit")
    record = read_manifest(done.folder)["record"]
    assert record["imported"] == done.facts
    assert done.facts["file"] == "model_final.pth"
    assert done.facts["sha256"] == sha256(file)
    assert done.facts["prefix"] == "model.net."
    assert done.facts["unused"] == "model.net.fc.* (2)"
    assert record["licenses"] == {"weights": "mit"}
    card = (done.folder / "README.md").read_text()
    assert "pcd_hub did not train it" in card
    assert f"- sha256 of the file: {sha256(file)}" in card
    assert "licence mit" in card
    for claim in ("Pixel-Wise", "distill", "Teacher", "their run", "0 steps", "Citation"):
        assert claim not in card, claim
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["tags"] == ["timm", "imported"]
    config = (done.folder / "config.json").read_text()
    for claim in ("Pixel-wise", "2211.00218"):
        assert claim not in config
    assert str(file.parent) not in json.dumps(record)


def test_mean_and_std_are_imagenets_or_those_given(file):
    done = pcd_hub.import_weights(file, "test_resnet")
    assert done.mean == timm.data.IMAGENET_DEFAULT_MEAN
    assert done.facts["normalisation"] == "ImageNet's (assumed)"
    done = pcd_hub.import_weights(
        file, "test_resnet", mean=(51.0, 102.0, 127.5), std=(25.5, 51.0, 51.0), name="imported_gray"
    )
    assert done.name == "test_resnet.imported_gray"
    assert (done.mean, done.std) == ((0.2, 0.4, 0.5), (0.1, 0.2, 0.2))
    assert open_model(done.name).mean == (0.2, 0.4, 0.5)
    assert done.facts["normalisation"] == "stated by the user"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "test_resnet.pcd"}, "--name test_resnet.pcd: expected imported_WHAT or"),
        ({"name": "resnet18.imported"}, "expected imported_WHAT or test_resnet.imported_WHAT"),
        ({"name": "imported-x"}, "lower-case letters, digits and underscores"),
        ({"mean": (0.5, 0.5, 0.5)}, "--mean and --std belong together"),
        ({"mean": (0.5,), "std": (0.5,)}, "expected three numbers each"),
        ({"mean": (0.5,) * 3, "std": (0.0,) * 3}, "expected three numbers each"),
        ({"mean": (float("nan"),) * 3, "std": (0.5,) * 3}, "expected three numbers each"),
        ({"image_size": 64}, "--image-size 64: test_resnet takes images of any size; leave it out"),
        ({"prefix": "elsewhere"}, "tensors are missing below 'elsewhere.'"),
    ],
)
def test_a_mistake_is_one_line_and_saves_nothing(file, options, message):
    with pytest.raises(WeightError, match=message) as caught:
        pcd_hub.import_weights(file, "test_resnet", **options)
    assert "\n" not in str(caught.value)
    assert store.names() == []


def test_an_unknown_architecture_is_named(file):
    with pytest.raises(StudentError, match="no architecture 'resnet81'; did you mean"):
        pcd_hub.import_weights(file, "resnet81")


def test_it_never_gets_the_tag_of_a_distilled_weight(file, tmp_path):
    done = pcd_hub.import_weights(file, "test_resnet")
    with pytest.raises(WeightError, match="test_resnet.pcd: expected the tag imported"):
        store.add("test_resnet.pcd", done.folder)
    with pytest.raises(WeightError, match="test_resnet.imported_x: expected the tag pcd or"):
        store.add("test_resnet.imported_x", exported(tmp_path / "export"))


def test_the_command(file, capsys):
    shown = result(capsys, "import", str(file), "--arch", "test_resnet", "--license", "mit")
    assert shown["name"] == NAME
    assert shown["facts"]["layout"] == "timm"
    cli.main(["import", str(file), "--arch", "test_resnet", "--name", "imported_2"])
    assert "imported, not trained by pcd_hub" in capsys.readouterr().out
    cli.main(["show", NAME])
    out = capsys.readouterr().out
    assert "imported file            model_final.pth" in out
    assert "steps" not in out
    cli.main(["list"])
    assert "test_resnet.imported_2" in capsys.readouterr().out
    code, out, err = outcome(capsys, "import", "none.pth", "--arch", "test_resnet")
    assert (code, out) == (1, "")
    assert err.startswith("error: no file none.pth; expected a checkpoint")


@pytest.fixture
def ann(hub, monkeypatch):  # noqa: F811
    hub.add_user("ann", token=TOKEN, orgs=("org",))
    point_client_at(hub, monkeypatch, token=TOKEN)
    yield hub
    settle()


def test_it_is_published_with_a_licence_and_not_without(ann, file):
    pcd_hub.import_weights(file, "test_resnet")
    with pytest.raises(WeightError, match="licence of the weights of test_resnet.imported is not"):
        pcd_hub.publish(NAME, "org/theirs")
    with pytest.raises(WeightError, match="was imported: the licences of its teacher and data are"):
        pcd_hub.publish(NAME, "org/theirs", license="mit", teacher_license="mit")
    assert "org/theirs" not in ann.repos
    done = pcd_hub.publish(NAME, "org/theirs", license="mit")
    assert done.public
    card = ann.files("org/theirs")["README.md"].decode()
    assert "license: mit" in card
    assert "pcd_hub did not train it" in card
    assert same_tensors(pcd_hub.create_model("org/theirs"), pcd_hub.create_model(NAME))


def test_a_weight_that_is_replaced_is_named(file, capsys, caplog):
    cli.main(["import", str(file), "--arch", "test_resnet"])
    state = torch.load(file)["model"]
    torch.save({key: value + 1 for key, value in state.items()}, file)
    cli.main(["import", str(file), "--arch", "test_resnet"])
    assert f"replaced {NAME} in the store; the previous weight is kept in " in caplog.text
