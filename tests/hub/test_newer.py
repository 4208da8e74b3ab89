"""Weights from a future version: what is unknown is ignored, listed and kept, or a clear error."""

import json
import shutil

import pytest
import timm
import torch

import pcd_hub
from pcd_hub import cli
from pcd_hub.errors import WeightError
from pcd_hub.weights import store
from pcd_hub.weights.export import add_measurements
from pcd_hub.weights.manifest import files_in, read_manifest, write_manifest
from tests.hub.surroundings import point_client_at, settle
from tests.weights.making import exported, measurement, same_tensors

NAME = "resnet18.pcd"
REPO = f"org/{NAME}"
TOKEN = "hf_" + "a1B2" * 9
FUTURE = {
    "energy": {"kwh": 1.5, "measured": [[0, 1], None]},
    "minor": 4,
}
"""Of a record."""


@pytest.fixture(autouse=True)
def ann(hub, monkeypatch):
    hub.add_user("ann", token=TOKEN, orgs=("org",))
    point_client_at(hub, monkeypatch, token=TOKEN)
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    yield
    settle()


@pytest.fixture
def model():
    torch.manual_seed(3)
    return timm.create_model("resnet18", num_classes=0)


@pytest.fixture
def newer(tmp_path, model):
    """An export with a field more everywhere, a new metric, and a folder of another format."""
    folder = exported(tmp_path / "export", "resnet18", model)
    return made_newer(folder)


def made_newer(folder):
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"onnx")
    (folder / "metrics.csv").write_text("a,b\n")
    config = json.loads((folder / "config.json").read_text())
    config["exporter"] = {"name": "pcd_hub", "version": "9.0"}
    config["pretrained_cfg"]["new_statistics"] = [1, 2]
    config["pcd"] = {**config["pcd"], "more": 1}
    del config["pcd"]["record_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    record = {**read_manifest(folder)["record"], **FUTURE}
    table = {**record["metrics"]["scene_probe"], "confidence": [0.95, "bootstrap"]}
    record["metrics"] = {"depth": {**table, "task": "depth estimation"}, "scene_probe": table}
    write_manifest(folder, record)
    manifest = json.loads((folder / "pcd_manifest.json").read_text())
    manifest |= {"signatures": [{"key": "x"}], "minor": 7}
    for entry in manifest["files"]:
        entry["blake3"] = "0" * 64
    (folder / "pcd_manifest.json").write_text(json.dumps(manifest))
    return folder


def repository_of(folder):
    files = {name: path.read_bytes() for name, path in files_in(folder).items()}
    return {**files, "docs/index.html": b"<html>", "model.bin": b"pickle"}


UNKNOWN = [
    "pcd_manifest.json: minor",
    "pcd_manifest.json: signatures",
    "record: energy",
    "record: minor",
    "config.json: exporter",
    "pretrained_cfg: new_statistics",
    "file metrics.csv",
    "file onnx/model.onnx",
]


def test_in_the_local_store(newer, model, capsys, monkeypatch):
    monkeypatch.delenv("PCD_HUB_ORG")
    folder = store.add(NAME, newer)
    assert files_in(folder).keys() == files_in(newer).keys()
    assert same_tensors(model, pcd_hub.create_model(NAME))
    assert same_tensors(model, timm.create_model(NAME, pretrained=True))
    cli.main(["show", NAME])
    out = capsys.readouterr().out
    assert [line.strip() for line in out.partition("does not know it:\n")[2].splitlines()] == (
        UNKNOWN
    )
    assert "depth estimation" in out
    cli.main(["show", NAME, "--json"])
    assert json.loads(capsys.readouterr().out)["energy"] == FUTURE["energy"]
    cli.main(["verify", NAME])
    cli.main(["list"])
    assert "unreadable" not in capsys.readouterr().out


def test_fetched_and_loaded_by_every_name(hub, newer, model):
    """All files in the manifest are fetched and verified, and none of the others."""
    hub.add_repo(REPO, repository_of(newer))
    fetched = pcd_hub.fetch(REPO)
    assert {name: path.read_bytes() for name, path in files_in(fetched.folder).items()} == {
        name: path.read_bytes() for name, path in files_in(newer).items()
    }
    for created in (
        pcd_hub.create_model(REPO),
        pcd_hub.create_model(NAME),
        timm.create_model(NAME, pretrained=True),
        timm.create_model(NAME, pretrained=True, features_only=True),
        pcd_hub.create_model(f"local-dir:{fetched.folder}"),
    ):
        assert torch.equal(created.conv1.weight, model.conv1.weight)
    (fetched.folder / "onnx" / "model.onnx").write_bytes(b"evil")
    assert pcd_hub.fetch(REPO) == fetched
    assert (fetched.folder / "onnx" / "model.onnx").read_bytes() == b"onnx"
    cli.main(["show", REPO])


@pytest.mark.parametrize("name", ["onnx/model.onnx", "metrics.csv"])
def test_a_file_that_is_named_is_verified_though_nobody_reads_it(newer, name):
    (newer / name).write_bytes(b"evil")
    with pytest.raises(WeightError, match=f"{name} has"):
        pcd_hub.create_model(f"local-dir:{newer}")
    (newer / name).unlink()
    with pytest.raises(WeightError, match=f"{name} is missing"):
        store.add(NAME, newer)


def test_published_and_measured_again_it_keeps_what_is_unknown(hub, newer, model, tmp_path):
    """But not of the manifest, which is written again: a signature would be of other bytes."""
    hub.add_repo(REPO, {"onnx/other.onnx": b"theirs"})
    measured = add_measurements(newer, {"new": measurement()}, tmp_path / "measured")
    pcd_hub.publish(measured, REPO)
    held = hub.files(REPO)
    assert held["onnx/other.onnx"] == b"theirs"
    assert held["onnx/model.onnx"] == b"onnx"
    manifest = json.loads(held["pcd_manifest.json"])
    assert {key: manifest["record"][key] for key in FUTURE} == FUTURE
    assert manifest["record"]["metrics"]["depth"]["confidence"] == [0.95, "bootstrap"]
    assert manifest.keys() == {"schema", "files", "record"}
    config = json.loads(held["config.json"])
    assert config["exporter"]["version"] == "9.0"
    assert config["pcd"].keys() == {"record", "record_sha256"}
    assert b"depth estimation" in held["README.md"]
    assert same_tensors(model, pcd_hub.create_model(REPO))


@pytest.mark.parametrize("schema", [2, 10])
def test_a_newer_schema_is_a_clear_error(hub, newer, schema):
    manifest = json.loads((newer / "pcd_manifest.json").read_text())
    (newer / "pcd_manifest.json").write_text(json.dumps({"schema": schema, "new": manifest}))
    hub.add_repo(REPO, repository_of(newer))
    message = f"schema is {schema}, expected 1: made by a newer pcd_hub; upgrade"
    for load in (pcd_hub.fetch, pcd_hub.create_model):
        with pytest.raises(WeightError, match=message):
            load(REPO)
    with pytest.raises(WeightError, match=message):
        store.add(NAME, newer)
    shutil.copytree(newer, store.home() / NAME)
    (listed,) = pcd_hub.list_weights()
    assert listed.license == "unreadable"


def test_the_present_version_writes_nothing_that_it_does_not_know(tmp_path, capsys):
    store.add(NAME, exported(tmp_path / "export", "resnet18"))
    cli.main(["show", NAME])
    assert "does not know" not in capsys.readouterr().out


def test_plain_timm_loads_it_unless_the_cfg_has_unknown_fields(hub, newer, model):
    config = json.loads((newer / "config.json").read_text())
    del config["pretrained_cfg"]["new_statistics"]
    files = {**repository_of(newer), "config.json": json.dumps(config).encode()}
    hub.add_repo(REPO, files)
    assert same_tensors(model, timm.create_model(f"hf-hub:{REPO}", pretrained=True))
