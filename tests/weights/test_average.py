import dataclasses
import json

import pytest
import timm
import torch

from pcd_hub import cli
from pcd_hub.data.multiband.names import RGB
from pcd_hub.errors import WeightError
from pcd_hub.models.tensor_files import save_tensors, tensors_sha256
from pcd_hub.weights import manifest, shipped, store
from pcd_hub.weights.average import average
from pcd_hub.weights.create import build_model
from pcd_hub.weights.export import describe
from pcd_hub.weights.input_bands import InputBands
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import read_manifest
from pcd_hub.weights.record import WeightRecord
from tests.weights.making import exported

START, TRAINED = "test_resnet.pcd", "test_resnet.pcd_photos"


LICENSES = dict.fromkeys(("code", "weights", "teacher", "data", "start"), "apache-2.0")


def network(seed):
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=0)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(seed)
        else:
            value.add_(torch.rand_like(value))
    return model


def trained_export(run, model, start, name=TRAINED):
    run.mkdir()
    return exported(run / "export", model=model, name=name, start=start, licenses=LICENSES)


@pytest.fixture
def pair(tmp_path):
    """A start in the store, and the export of a training from it."""
    start, trained = network(3), network(8)
    store.add(START, exported(tmp_path / "start", model=start))
    facts = {
        "source": START,
        "name": START,
        "sha256": tensors_sha256(start.state_dict()),
        "license": "apache-2.0",
    }
    export = trained_export(tmp_path / "run", trained, facts)
    return start.state_dict(), trained.state_dict(), export


def test_the_mean_of_a_run_and_its_start_is_stored_and_loads(pair, tmp_path):
    start, trained, export = pair
    done = average(tmp_path / "run", START, share=0.25)
    assert (done.name, done.folder) == (f"{TRAINED}_mean", store.home() / f"{TRAINED}_mean")
    loaded = timm.create_model(f"local-dir:{done.folder}", pretrained=True, num_classes=0)
    for key, value in loaded.state_dict().items():
        expected = 0.25 * start[key] + 0.75 * trained[key]
        if key.endswith("num_batches_tracked"):
            expected = torch.tensor(8)
        torch.testing.assert_close(value, expected)
    before = read_weight(export)
    after = read_weight(done.folder)
    assert before.record.metrics
    assert not after.record.metrics, "they are not of these values"
    assert after.record.start == before.record.start
    expected = {"share_of_start": 0.25, "trained_weights_sha256": before.weights_sha256}
    assert after.record.averaged == expected
    assert after.config["pretrained_cfg"]["tag"] == "pcd_photos_mean"
    card = (done.folder / "README.md").read_text()
    assert "a weighted mean of the trained ones and their start (25%)" in card


def test_a_record_without_a_mean_keeps_its_bytes(pair):
    *_, export = pair
    assert "averaged" not in read_weight(export).record.to_dict()


def start_facts(state, name=START, source=START):
    facts = {"source": source, "name": name, "license": "apache-2.0"}
    return {**facts, "sha256": tensors_sha256(state)}


def test_a_mean_can_be_a_start_but_is_not_averaged_again(pair, tmp_path):
    done = average(tmp_path / "run", START)
    loaded = timm.create_model(f"local-dir:{done.folder}", pretrained=True, num_classes=0)
    facts = start_facts(loaded.state_dict(), name=done.name)
    trained_export(tmp_path / "next", network(5), facts)
    again = average(tmp_path / "next", done.folder, name="test_resnet.pcd_twice")
    assert store.where("test_resnet.pcd_twice") == again.folder.resolve()
    with pytest.raises(WeightError, match=f"--name {START}: expected test_resnet.pcd_WHAT"):
        average(tmp_path / "next", done.folder, name=START)
    with pytest.raises(WeightError, match=f"{TRAINED}_mean is a mean already; average the run"):
        average(done.name, START, share=0.3)


def test_neither_the_weight_nor_its_start_is_replaced(pair, tmp_path):
    for name in (TRAINED, START):
        with pytest.raises(WeightError, match=f"--name {name}: .* neither the name of the weight"):
            average(tmp_path / "run", START, name=name)
    assert store.names() == [START]


def test_a_shipped_start_is_found_although_the_store_has_another_of_its_name(pair, tmp_path):
    start = network(3)
    state = {key: v.half() if v.ndim > 1 else v for key, v in start.state_dict().items()}
    folder = exported(shipped.FOLDER / START)
    save_tensors(state, folder / "model.safetensors")
    manifest.write_manifest(folder, read_manifest(folder)["record"])
    trained = network(8)
    facts = start_facts({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    trained_export(tmp_path / "next", trained, {**facts, "source": "shipped"})
    with pytest.raises(WeightError, match=r"is not the weight that .* which is shipped \("):
        average(tmp_path / "next", START)
    done = average(tmp_path / "next", "shipped")
    key = "conv1.0.weight"
    expected = (state[key].float() + trained.state_dict()[key]) / 2
    torch.testing.assert_close(read_weight(done.folder).tensors[key], expected)


def test_a_start_for_another_image_size_is_adapted_as_it_was_in_training(tmp_path):
    stored = timm.create_model("test_vit", num_classes=0, img_size=160)
    store.add("test_vit.pcd", exported(tmp_path / "start", "test_vit", stored, image_size=160))
    small = build_model(read_weight(store.where("test_vit.pcd")), img_size=64)
    facts = start_facts(small.state_dict(), name="test_vit.pcd")
    options = {"image_size": 64, "name": "test_vit.pcd_small", "licenses": LICENSES}
    export = exported(tmp_path / "trained", "test_vit", small, start=facts, **options)
    done = average(export, "test_vit.pcd", share=0.4)
    tensors = read_weight(done.folder).tensors
    torch.testing.assert_close(tensors["pos_embed"], small.state_dict()["pos_embed"])


def test_weights_for_images_of_another_normalisation_are_not_mixed(tmp_path):
    start, bands = network(3), InputBands(RGB, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    store.add(START, exported(tmp_path / "start", model=start, bands=bands))
    trained_export(tmp_path / "run", network(8), start_facts(start.state_dict()))
    with pytest.raises(
        WeightError, match=r"the mean of the images is \[0\.485.* \[0\.5, 0\.5, 0\.5\]"
    ):
        average(tmp_path / "run", START)


def test_another_weight_than_the_start_is_refused(pair, tmp_path):
    exported(tmp_path / "other", model=network(4))
    with pytest.raises(
        WeightError, match=r"other is not the weight .* is test_resnet\.pcd \([0-9a-f]"
    ):
        average(tmp_path / "run", tmp_path / "other")
    with pytest.raises(WeightError, match=r"was trained from random weights: it has no start"):
        average(f"{tmp_path / 'other'}", f"local-dir:{store.home() / START}")
    with pytest.raises(WeightError, match="pcd_hub ships no weight of test_resnet, only "):
        average(tmp_path / "run", "shipped")
    larger = exported(tmp_path / "larger", "resnet18")
    with pytest.raises(WeightError, match=r"larger is a resnet18, .*_photos a test_resnet; exp"):
        average(tmp_path / "run", larger)
    assert store.names() == [START]


def test_a_shipped_start_of_another_version_is_named(tmp_path):
    exported(shipped.FOLDER / START, model=network(3))
    facts = start_facts(network(4).state_dict(), source="shipped")
    trained_export(tmp_path / "run", network(8), facts)
    with pytest.raises(WeightError, match=r"which is shipped \(.*install the version of pcd_hub"):
        average(tmp_path / "run", "shipped")


def test_the_mean_of_a_weight_stored_in_float16_is_in_float32(pair, tmp_path):
    *_, export = pair
    trained = read_weight(export)
    record = dataclasses.replace(
        trained.record,
        model={**trained.record.model, "stored_as": "float16"},
        verdicts=({"step": 3, "kind": "learning", "words": "rising"},),
    )
    describe(export, record, trained.config)
    after = read_weight(average(tmp_path / "run", START).folder).record
    assert "stored_as" not in after.model
    assert not after.verdicts, "they are of the training"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_out_of_range_is_named(pair, tmp_path, share):
    with pytest.raises(WeightError, match=f"--share {share}: expected a number between 0 and 1"):
        average(tmp_path / "run", START, share=share)


def test_the_name_of_another_architecture_is_refused(pair, tmp_path):
    with pytest.raises(WeightError, match=r"--name resnet18\.pcd_x: expected test_resnet\.pcd_"):
        average(tmp_path / "run", START, name="resnet18.pcd_x")


def test_the_command_names_a_shipped_start_as_the_probe_takes_it(tmp_path, capsys):
    exported(shipped.FOLDER / START, model=network(3))
    facts = start_facts(network(3).state_dict(), source="shipped")
    trained_export(tmp_path / "run", network(8), facts)
    cli.main(["average", str(tmp_path / "run"), "shipped"])
    assert f"pcd-hub probe LABELLED {TRAINED}_mean {START}\n" in capsys.readouterr().out
    store.add(START, exported(tmp_path / "own", model=network(5)))
    cli.main(["average", str(tmp_path / "run"), "shipped", "--share", "0.4"])
    printed = capsys.readouterr().out
    assert f"{TRAINED}_mean local-dir:{shipped.FOLDER / START}\n" in printed
    assert f"replaced {TRAINED}_mean in the store; the previous weight is kept in " in printed


@pytest.mark.usefixtures("pair")
def test_the_command_prints_the_weight_and_how_to_measure_it(tmp_path, capsys):
    cli.main(["average", str(tmp_path / "run"), START, "--json"])
    assert json.loads(capsys.readouterr().out)["share_of_start"] == 0.5
    cli.main(["average", str(tmp_path / "run"), START, "--share", "0.3"])
    assert f"pcd-hub probe LABELLED {TRAINED}_mean {START}" in capsys.readouterr().out
    cli.main(["show", f"{TRAINED}_mean"])
    shown = capsys.readouterr().out
    assert "averaged share_of_start  0.3" in shown
    assert WeightRecord.from_dict(read_weight(store.where(f"{TRAINED}_mean")).record.to_dict())
