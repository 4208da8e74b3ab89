"""Loading by name: what is checked, and what the caller may say."""

import json
import shutil
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

import pcd_hub
from pcd_hub.errors import HubError, MissingWeightError, PCDHubError, StudentError, WeightError
from pcd_hub.evaluate.models import open_model
from pcd_hub.models.timm_loading import create_pretrained
from pcd_hub.weights import catalogue, create, store
from pcd_hub.weights.hub import published
from pcd_hub.weights.hub.address import check_endpoint, redacted
from pcd_hub.weights.input_bands import InputBands
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import sha256, write_manifest
from tests.weights.making import exported, filled, same_tensors

NAME = "test_resnet.pcd"


@pytest.fixture
def model():
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=0)


@pytest.fixture
def folder(tmp_path, model):
    return exported(tmp_path / "export", model=model)


def test_a_folder_and_a_stored_name_load_the_same(folder, model):
    store.add(NAME, folder)
    for name in (f"local-dir:{folder}", NAME):
        assert same_tensors(model, pcd_hub.create_model(name))
    features = pcd_hub.create_model(NAME, features_only=True)
    assert len(features(torch.zeros(1, 3, 64, 64))) == 5
    assert pcd_hub.create_model(NAME, num_classes=7)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    "argument", ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"]
)
def test_what_would_load_something_else_is_refused(folder, argument):
    with pytest.raises(WeightError, match=f"takes no {argument}"):
        pcd_hub.create_model(f"local-dir:{folder}", **{argument: {}})


@pytest.mark.parametrize("names", [("gray",), ("red", "green", "blue", "nir")])
def test_a_weight_of_other_bands_loads_exactly_and_only_with_them(tmp_path, names):
    torch.manual_seed(1)
    count = len(names)
    model = timm.create_model("test_resnet", num_classes=0, in_chans=count)
    bands = InputBands(names, (0.4,) * count, (0.2,) * count)
    folder = exported(tmp_path / "export", model=model, bands=bands)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    for again in (loaded, pcd_hub.create_model(f"local-dir:{folder}")):
        assert same_tensors(model, again)
        assert again.pretrained_cfg["mean"] == [0.4] * count
    with pytest.raises(WeightError, match=f"in_chans 3: .* takes images of {count} bands"):
        pcd_hub.create_model(f"local-dir:{folder}", in_chans=3)
    with pytest.raises(StudentError, match=f"takes images of {count} bands"):
        open_model(f"local-dir:{folder}")


def test_a_weight_of_other_bands_is_refused_as_timms_entry_with_the_line_that_works(tmp_path):
    model = timm.create_model("resnet18", num_classes=0, in_chans=4)
    bands = InputBands(("a", "b", "c", "d"), (0.4,) * 4, (0.2,) * 4)
    store.add("resnet18.pcd", exported(tmp_path / "export", "resnet18", model, bands=bands))
    with pytest.raises(WeightError, match=r'4 bands, .* pcd_hub.create_model\("resnet18.pcd"\)'):
        timm.create_model("resnet18.pcd", pretrained=True)
    assert same_tensors(model, pcd_hub.create_model("resnet18.pcd"))


def test_rgb_weights_are_still_adapted_to_other_channels(folder):
    assert pcd_hub.create_model(f"local-dir:{folder}", in_chans=1)(torch.zeros(1, 1, 64, 64)).shape


def test_position_embeddings_that_are_not_square_are_resized(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=0, img_size=(64, 160))
    folder = f"local-dir:{exported(tmp_path / 'export', 'test_vit', model, image_size=(64, 160))}"
    for again in (pcd_hub.create_model(folder), timm.create_model(folder, pretrained=True)):
        assert again.patch_embed.grid_size == (4, 10)
        assert torch.equal(again.pos_embed, model.pos_embed)
    model.set_input_size(img_size=(96, 96))
    for arguments in ({}, {"features_only": True}):
        square = dict(pcd_hub.create_model(folder, img_size=96, **arguments).named_parameters())
        name = next(name for name in square if name.endswith("pos_embed"))
        torch.testing.assert_close(square[name], model.pos_embed)
    with pytest.raises(ValueError, match="for 64 x 160 px, .* expected that size, found 96"):
        create_pretrained(folder, img_size=96)


def test_position_embeddings_that_timm_would_take_as_square_are_not_loaded(tmp_path):
    """Four times nine tokens are six times six: an older timm would mix up their order."""
    model = timm.create_model("test_vit", num_classes=0, img_size=(64, 144))
    folder = f"local-dir:{exported(tmp_path / 'export', 'test_vit', model, image_size=(64, 144))}"
    try:
        square = pcd_hub.create_model(folder, img_size=96)
    except WeightError as error:
        assert "was trained at 64 x 144 px" in str(error)  # noqa: PT017 - not with a newer timm
    else:
        assert not torch.equal(square.pos_embed, model.pos_embed)


def test_timms_entry_refuses_a_weight_that_is_not_square(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(64, 160))
    export = exported(tmp_path / "export", "vit_tiny_patch16_224", model, image_size=(64, 160))
    store.add("vit_tiny_patch16_224.pcd", export)
    with pytest.raises(WeightError, match=r"trained at 64 x 160 px.*pcd_hub.create_model\("):
        timm.create_model("vit_tiny_patch16_224.pcd", pretrained=True)
    assert pcd_hub.create_model("vit_tiny_patch16_224.pcd").patch_embed.grid_size == (4, 10)


def test_a_runs_folder_stands_for_its_last_export(folder, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    exported(tmp_path / "runs" / "own" / "export", model=model)
    for name in ("runs/own", "local-dir:runs/own", "runs/own/export", str(tmp_path / "runs/own")):
        assert same_tensors(model, pcd_hub.create_model(name))
        assert pcd_hub.where(name).name == "export"
    for find in (pcd_hub.create_model, catalogue.find_here):
        with pytest.raises(PCDHubError, match="runs has no folder owm; did you mean 'own'"):
            find("runs/owm")
    shutil.copytree("runs/own/export", "org/resnet18.pcd")
    assert pcd_hub.where("org/resnet18.pcd") is None, "a repository on the Hub"
    for name in ("./org/resnet18.pcd", str(tmp_path / "org/resnet18.pcd")):
        assert pcd_hub.where(name).name == "resnet18.pcd"
    for name in (Path("runs/own"), Path("org/resnet18.pcd"), Path("runs/own/export")):
        assert same_tensors(model, pcd_hub.create_model(name))
        assert pcd_hub.where(name).is_dir()
    monkeypatch.chdir("runs")
    for name in ("own", "own/export"):
        assert same_tensors(model, pcd_hub.create_model(name))
    monkeypatch.chdir("own")
    assert pcd_hub.where(".").name == "export"
    assert pcd_hub.where(tmp_path / "none") is None
    with pytest.raises(MissingWeightError, match="^/.* has no folder owm; did you mean 'own'"):
        pcd_hub.create_model(tmp_path / "runs" / "owm")


@pytest.mark.parametrize("name", ["runs/own", "local-dir:runs/own", Path("runs/own")])
def test_of_a_run_that_is_not_finished_it_is_said(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("runs/own/checkpoints").mkdir(parents=True)
    message = (
        "own has no pcd_manifest.json; did the run finish. `pcd-hub distill --resume runs/own`"
    )
    for find in (pcd_hub.create_model, pcd_hub.where):
        with pytest.raises(WeightError, match=message):
            find(name)


def test_a_weight_under_the_name_of_another_architecture_is_refused(tmp_path):
    export = exported(tmp_path / "export")
    with pytest.raises(
        WeightError, match="another architecture; expected test_resnet.pcd or test_resnet.pcd_WHAT"
    ):
        store.add("resnet18.pcd", export)
    shutil.copytree(export, store.home() / "resnet18.pcd")
    with pytest.raises(
        WeightError, match="resnet18.pcd has architecture test_resnet, expected resnet18"
    ):
        timm.create_model("resnet18.pcd", pretrained=True)


def test_a_weight_that_expects_other_pixels_than_its_entry_says_is_refused(tmp_path):
    folder = exported(tmp_path / "export", "resnet18")
    rewrite(folder, lambda config: config["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]))
    store.add("resnet18.pcd", folder)
    with pytest.raises(
        WeightError, match="normalised with mean .*0.5.* load it with pcd_hub.create_model"
    ):
        timm.create_model("resnet18.pcd", pretrained=True)
    assert pcd_hub.create_model("resnet18.pcd").pretrained_cfg["mean"] == [0.5, 0.5, 0.5]


def test_a_configuration_with_another_record_is_refused(folder):
    rewrite(folder, lambda config: config["pcd"].update(record_sha256="0" * 64))
    with pytest.raises(WeightError, match="config.json refers to another record than the manifest"):
        pcd_hub.create_model(f"local-dir:{folder}")


def rewrite(folder, change):
    """Change config.json, and let the manifest agree."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder, json.loads((folder / "pcd_manifest.json").read_text())["record"])


def test_the_manifest_that_is_read_is_the_one_that_was_pinned(folder, tmp_path):
    """Swapped whole between the look and the load: every file agrees with the wrong manifest."""
    pinned = sha256(folder / "pcd_manifest.json")
    assert read_weight(folder, manifest_sha256=pinned)
    other = filled(2.0, tmp_path / "other")
    with pytest.raises(WeightError, match="expected .* which was pinned"):
        read_weight(other, manifest_sha256=pinned)
    with pytest.raises(WeightError, match="expected .* which was pinned"):
        pcd_hub.create_model(f"local-dir:{other}", manifest_sha256=pinned)


@pytest.mark.parametrize(
    "change",
    [{"licenses": 3}, {"steps": "x"}, {"name": None}, {"licenses": {"weights": 1}}, {"\x1b": 1}],
)
def test_a_hostile_record_is_refused_and_listed_as_unreadable(folder, change):
    record = json.loads((folder / "pcd_manifest.json").read_text())["record"]
    write_manifest(folder, {**record, **change})
    with pytest.raises(WeightError, match="record"):
        store.add(NAME, folder)
    shutil.copytree(folder, store.home() / NAME)
    with pytest.raises(WeightError, match="record"):
        pcd_hub.create_model(NAME)
    (listed,) = pcd_hub.list_weights()
    assert listed.license == "unreadable"


def test_a_pipe_in_a_bundle_is_not_waited_for(folder):
    import os

    manifest = json.loads((folder / "pcd_manifest.json").read_text())
    (folder / "pca.png").unlink()
    os.mkfifo(folder / "pca.png")
    next(e for e in manifest["files"] if e["path"] == "pca.png")["size"] = 0
    (folder / "pcd_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightError, match="pca.png is missing"):
        pcd_hub.create_model(f"local-dir:{folder}")


# The list of published weights.


def test_an_entry_without_a_name_is_refused(tmp_path):
    path = tmp_path / "published.json"
    sha256s = dict.fromkeys(("manifest_sha256", "weights_sha256"), "0" * 64)
    entry = {"name": [], "repo": "a/b", "commit": "0" * 40, "license": "mit", "parameters": 1}
    path.write_text(json.dumps([entry | sha256s | {"features": [0.5]}]))
    with pytest.raises(WeightError, match=r"name is \[\]; it must be a string"):
        published.read_list(path)


@pytest.mark.parametrize("text", ["{", "[1]", "[{}]", '[{"features": 1}]', '{"a": 1}', "[" * 5000])
def test_a_damaged_list_is_refused(tmp_path, text):
    path = tmp_path / "published.json"
    path.write_text(text)
    with pytest.raises(WeightError, match="is not a list of published weights"):
        published.read_list(path)


def test_a_published_weight_is_listed_once_whether_fetched_or_not(folder, monkeypatch):
    record = published.PublishedWeight(
        name=NAME,
        repo="org/net",
        commit="a" * 40,
        manifest_sha256="b" * 64,
        weights_sha256="c" * 64,
        license="mit",
        parameters=5,
        features=(0.0,),
    )
    monkeypatch.setattr(catalogue, "published_weights", lambda: {NAME: record})
    (listed,) = pcd_hub.list_weights()
    assert (listed.name, listed.origin, listed.parameters) == (NAME, "published", 5)
    snapshots = Path(constants.HF_HUB_CACHE) / "models--org--net" / "snapshots"
    snapshots.mkdir(parents=True)
    folder.rename(snapshots / ("a" * 40))
    assert pcd_hub.list_weights()[0].origin == "published", "another program's is not ours"
    pin = store.home() / "pins" / "org" / f"net@{'a' * 40}"
    pin.parent.mkdir(parents=True)
    pin.write_text(f"{record.reference} {record.manifest_sha256}\n")
    (listed,) = pcd_hub.list_weights()
    assert (listed.name, listed.origin) == (record.reference, "fetched")


def test_the_packages_list_is_whole():
    for name, record in published.published_weights().items():
        assert store.is_name(name)
        assert len(record.commit) == 40
    assert create.published_weights is published.published_weights


# What may not be shown.


def test_the_search_for_secrets_takes_no_time():
    start = time.process_time()
    redacted("a" * 10**6)
    redacted("https://" * 10**5)
    assert time.process_time() - start < 5


def test_secrets_are_taken_out_of_messages():
    text = (
        "GET https://ann:pw@h.co/x?X-Amz-Signature=abc hf_abcDEF123 Authorization: Bearer xyz.1 "
        "see https://h.co/y?sig=1&t=2."
    )
    shown = redacted(text)
    for secret in ("pw@", "abc", "DEF", "xyz", "sig=1"):
        assert secret not in shown
    assert "https://h.co/y?***" in shown


@pytest.mark.parametrize("endpoint", ["https://[::1", "https://", "https://h.co?token=abc"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint):
    with pytest.raises(HubError, match="HF_ENDPOINT=") as caught:
        check_endpoint(endpoint)
    assert "abc" not in str(caught.value)


def test_timms_prefix_of_the_hub_may_stay():
    for name in ("org/resnet18.pcd", "org/resnet18.pcd@v1"):
        assert published.reference_of(f"hf-hub:{name}") == (name, None)
        assert catalogue.as_name(f"hf-hub:{name}") == name
