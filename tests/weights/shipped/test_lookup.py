"""Where a name leads when a weight is shipped: store, organisation, published list, package."""

import json
import logging

import pytest
import timm
import torch

import pcd_hub
from pcd_hub import cli
from pcd_hub.errors import HubNotFoundError, WeightError
from pcd_hub.evaluate.comparison import add_to_weight
from pcd_hub.evaluate.models import open_model
from pcd_hub.weights import catalogue, create, shipped, store
from pcd_hub.weights.hub import published
from pcd_hub.weights.manifest import sha256, weights_sha256
from tests.weights.making import exported, files_of, filled, flip, same_tensors

NAME = "test_resnet.pcd"


@pytest.fixture
def model():
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=0)


@pytest.fixture
def folder(model):
    return exported(shipped.FOLDER / NAME, model=model)


@pytest.fixture(autouse=True)
def _new_process():
    create._warn_once.cache_clear()


def value() -> float:
    (found,) = next(pcd_hub.create_model(NAME).parameters()).unique().tolist()
    return found


def test_a_shipped_weight_loads_by_name_from_an_empty_store(folder, model):
    assert same_tensors(model, pcd_hub.create_model(NAME))
    assert pcd_hub.where(NAME) == folder
    assert catalogue.has_weight(NAME)
    assert open_model(NAME).weights_sha256 == weights_sha256(folder)
    assert not store.home().exists()
    for name in ("../shipped", "", ".", "test_resnet.pcd_other"):
        assert shipped.where(name) is None


def test_timm_loads_and_lists_a_shipped_weight():
    assert not timm.is_model_pretrained("resnet18.pcd")
    model = timm.create_model("resnet18", num_classes=0)
    exported(shipped.FOLDER / "resnet18.pcd", "resnet18", model)
    assert timm.list_pretrained("*.pcd") == ["resnet18.pcd"]
    features = timm.create_model("resnet18.pcd", pretrained=True, features_only=True)
    assert torch.equal(features.conv1.weight, model.conv1.weight)


def test_a_local_weight_comes_first_and_is_named_once(folder, tmp_path, caplog):
    store.add(NAME, filled(2.0, tmp_path / "mine"))
    with caplog.at_level(logging.WARNING, logger="pcd_hub"):
        assert value() == value() == 2.0
    (warning,) = caplog.messages
    assert f"{NAME}: the weight in {store.home()} is used instead of the one that" in warning
    assert pcd_hub.where(NAME) == store.where(NAME)


def test_the_variable_chooses_without_a_warning(folder, model, tmp_path, monkeypatch, caplog):
    store.add(NAME, filled(2.0, tmp_path / "mine"))
    monkeypatch.setenv("PCD_HUB_LOCAL", "1")
    assert value() == 2.0
    monkeypatch.setenv("PCD_HUB_LOCAL", "0")
    assert same_tensors(model, pcd_hub.create_model(NAME))
    assert pcd_hub.where(NAME) == folder
    assert not caplog.messages


def test_a_local_copy_of_the_shipped_weight_is_no_news(folder, caplog):
    store.add(NAME, folder)
    assert pcd_hub.create_model(NAME)
    assert not caplog.messages


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "pca.png"])
def test_a_damaged_shipped_weight_is_refused_with_its_remedy(folder, file):
    flip(folder / file)
    with pytest.raises(WeightError, match=rf"{file} has sha256 .*pip install --force-reinstall"):
        pcd_hub.create_model(NAME)


@pytest.mark.parametrize("file", ["model.safetensors", "pcd_manifest.json"])
def test_an_incomplete_shipped_weight_is_refused(folder, file):
    (folder / file).unlink()
    with pytest.raises(WeightError, match=rf"{file}'? is missing .*pip install --force-reinstall"):
        pcd_hub.create_model(NAME)
    with pytest.raises(SystemExit, match="1 of 1 weights are damaged"):
        cli.main(["verify"])


def test_a_pin_of_another_manifest_is_refused(folder):
    right = sha256(folder / "pcd_manifest.json")
    assert pcd_hub.create_model(NAME, manifest_sha256=right)
    with pytest.raises(WeightError, match="which was pinned"):
        pcd_hub.create_model(NAME, manifest_sha256="0" * 64)


def test_no_shipped_weight_is_named_where_there_is_none(folder):
    with pytest.raises(WeightError, match=f"no weight resnet18.pcd; pcd_hub ships {NAME}. Distil"):
        pcd_hub.create_model("resnet18.pcd")


# An organisation, and the published list.


def test_an_organisation_that_does_not_answer_is_not_replaced(folder, monkeypatch):
    """The tests run with HF_HUB_OFFLINE=1."""
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    with pytest.raises(WeightError, match="not fetched .* is not used instead: unset PCD_HUB_ORG"):
        pcd_hub.create_model(NAME)
    assert pcd_hub.where(NAME) is None
    assert not catalogue.has_weight(NAME)


def test_an_organisation_without_the_weight_is_not_replaced(folder, monkeypatch):
    monkeypatch.setenv("PCD_HUB_ORG", "org")

    def absent(*_, **__):
        raise HubNotFoundError("org/test_resnet.pcd does not exist")

    monkeypatch.setattr(create, "read_fetched", absent)
    with pytest.raises(HubNotFoundError, match="does not exist; .*unset PCD_HUB_ORG to load it"):
        pcd_hub.create_model(NAME)


def listed(folder, monkeypatch, **changed):
    facts = {
        "name": NAME,
        "repo": "org/test_resnet.pcd",
        "commit": "a" * 40,
        "manifest_sha256": "b" * 64,
        "weights_sha256": weights_sha256(folder),
        "license": "apache-2.0",
        "parameters": 1,
        "features": (0.0,),
    }
    record = published.PublishedWeight(**{**facts, **changed})
    for module in (published, create, catalogue):
        monkeypatch.setattr(module, "published_weights", lambda: {NAME: record})


def test_the_published_copy_of_a_shipped_weight_needs_no_network(folder, model, monkeypatch):
    listed(folder, monkeypatch)
    assert same_tensors(model, pcd_hub.create_model(NAME))
    with pytest.raises(WeightError, match="was not fetched"):
        pcd_hub.create_model(NAME, manifest_sha256="b" * 64)


def test_another_published_weight_comes_before_the_shipped_one(folder, monkeypatch):
    listed(folder, monkeypatch, weights_sha256="c" * 64)
    with pytest.raises(WeightError, match=r"not fetched .*is not used instead: .*local-dir:.*load"):
        pcd_hub.create_model(NAME)
    assert pcd_hub.where(NAME) is None


# The command line.


def test_the_commands_know_a_shipped_weight(folder, capsys):
    cli.main(["list", "--json"])
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["name"], one["origin"], one["folder"]) == (NAME, "shipped", str(folder))
    cli.main(["where", NAME])
    assert capsys.readouterr().out.strip() == str(folder)
    cli.main(["show", NAME])
    assert "licenses teacher" in capsys.readouterr().out
    cli.main(["verify"])
    assert f"OK       {NAME}  {folder}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is shipped with pcd_hub and needs no fetch"):
        cli.main(["fetch", NAME])
    with pytest.raises(SystemExit, match=f"holds none, pcd_hub ships {NAME}"):
        cli.main(["where", "resnet18.pcd"])


def test_the_commands_name_a_local_weight_that_is_used_instead(folder, tmp_path, capsys):
    store.add(NAME, filled(2.0, tmp_path / "mine"))
    for words in (["list"], ["where", NAME], ["show", NAME], ["verify", NAME]):
        cli.main(words)
        out, err = capsys.readouterr()
        assert err.startswith(f"{NAME}: the weight in {store.home()} is used instead")
        assert "instead" not in out
    cli.main(["list"])
    assert [row.split()[:2] for row in capsys.readouterr().out.splitlines()[1:]] == [
        [NAME, "local"],
        [NAME, "shipped"],
    ]
    cli.main(["verify"])
    ours = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert ours == [str(store.folder_of(NAME)), str(folder)]


def test_where_refuses_what_an_organisation_has_to_give(folder, monkeypatch):
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    with pytest.raises(SystemExit, match=f"run `pcd-hub fetch {NAME}`, or unset PCD_HUB_ORG"):
        cli.main(["where", NAME])


def test_a_listing_reads_no_tensors(folder):
    (folder / "model.safetensors").write_bytes(b"")
    (one,) = pcd_hub.list_weights()
    assert one.parameters == 372688


def test_a_shipped_weight_may_be_published_but_not_changed(folder, tmp_path):
    assert catalogue.finished_export(NAME) == folder
    before = files_of(folder)
    with pytest.raises(WeightError, match="shipped with pcd_hub, which stays as it is"):
        add_to_weight(NAME, [])
    assert files_of(folder) == before
    store.add(NAME, folder)
    assert catalogue.finished_export(NAME) == store.where(NAME) != folder
