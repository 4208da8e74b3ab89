"""Joining runs, and adding their tables to a weight's record and card."""

import dataclasses
import json
from pathlib import Path

import pytest

from pcd_hub.errors import DataError, WeightError
from pcd_hub.evaluate.comparison import add_to_weight, joined_tables
from pcd_hub.weights import store
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import weights_sha256
from tests.evaluate.tables import table
from tests.weights.making import exported, files_of, flip


@pytest.fixture
def measured(tmp_path):
    """A run's export, and an evaluation of it."""
    export = exported(tmp_path / "run" / "export")
    folder = tmp_path / "eval"
    folder.mkdir()
    name = f"local-dir:{export}"
    scores = dict(zip((name, "random:net"), table().scores.values(), strict=True))
    table(scores=scores, weights_sha256={name: weights_sha256(export)}).save(folder)
    return export, folder


def named(record, start):
    """The one measurement whose short name starts like this."""
    (found,) = (m for name, m in record.measurements().items() if name.startswith(start))
    return found


def test_tables_are_added_to_the_record_and_the_card(measured, tmp_path):
    export, folder = measured
    weights = (export / "model.safetensors").read_bytes()
    (tmp_path / "run" / "record.json").write_text("{}")
    assert add_to_weight(str(export), joined_tables([folder])) == export
    record = read_weight(export).record
    measurement = named(record, "linear_segmentation_probe_streets_val_mean_iou")
    assert (measurement.subject, measurement.means) == (
        "test_resnet.pcd",
        {"test_resnet.pcd": 12.0, "random:net": 30.5},
    )
    assert measurement.stds == {"test_resnet.pcd": 2.83, "random:net": 0.71}
    assert "scene_probe" in record.metrics, "what was there before stays"
    card = (export / "README.md").read_text()
    assert "| **test_resnet.pcd** (this weight) | 12.00 ± 2.83 | **3.00 ± 0.00** |" in card
    assert str(tmp_path) not in card.partition("## Provenance")[0]
    assert (export / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "run" / "record.json").read_text()) == record.to_dict()
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")] == []


def test_a_run_stands_for_its_export(measured):
    export, folder = measured
    assert add_to_weight(str(export.parent), joined_tables([folder])) == export


def test_a_former_export_leaves_the_runs_record(measured, tmp_path):
    export, folder = measured
    exported(tmp_path / "run" / "export-2")
    (tmp_path / "run" / "record.json").write_text("{}")
    add_to_weight(str(export), joined_tables([folder]))
    assert (tmp_path / "run" / "record.json").read_text() == "{}"


def test_a_measurement_with_another_protocol_is_added_and_a_repeated_one_replaced(measured):
    export, folder = measured
    add_to_weight(str(export), joined_tables([folder]))
    other = dataclasses.replace(joined_tables([folder])[0], protocol="on 10 % of the labels")
    for _ in range(2):
        add_to_weight(str(export), [other])
        add_to_weight(str(export), joined_tables([folder]))
    found = [
        measurement.protocol
        for name, measurement in read_weight(export).record.measurements().items()
        if name.startswith("linear_segmentation_probe_streets_val_mean_iou")
    ]
    assert found == [table().protocol, other.protocol]
    assert (export / "README.md").read_text().count("| **test_resnet.pcd** (this weight) |") == 2


def test_a_stored_weight_gets_a_new_version(measured):
    export, folder = measured
    store.add("test_resnet.pcd", export)
    for name in ("test_resnet.pcd", str(store.home() / "test_resnet.pcd")):
        before = store.where("test_resnet.pcd")
        add_to_weight(name, joined_tables([folder.parent / "eval"]))
        assert store.where("test_resnet.pcd") != before
        assert (store.home() / "test_resnet.pcd").is_symlink()
    record = read_weight(store.where("test_resnet.pcd")).record
    assert named(record, "linear_segmentation_probe_streets_val_mean_iou")
    assert list(read_weight(export).record.metrics) == ["scene_probe"]


def test_a_weight_that_was_not_measured_gets_nothing(measured, tmp_path):
    export, folder = measured
    other = exported(tmp_path / "other")
    before = files_of(other)
    with pytest.raises(
        WeightError,
        match=r"did not measure .*other .*weights it measured: local-dir:.*export",
    ):
        add_to_weight(str(other), joined_tables([folder]))
    assert files_of(other) == before
    (export / "NOTES.txt").write_text("mine")
    with pytest.raises(WeightError, match=r"contains NOTES.txt, which is not part of it; move it"):
        add_to_weight(str(export), joined_tables([folder]))
    (export / "NOTES.txt").unlink()
    flip(export / "model.safetensors")
    before = files_of(export)
    with pytest.raises(WeightError, match="sha256"):
        add_to_weight(str(export), joined_tables([folder]))
    assert files_of(export) == before, "a damaged one is not rewritten"


def test_results_of_two_protocol_versions_never_share_a_table(tmp_path):
    other = {"x": table().scores["net.pcd"]}
    table().save(tmp_path / "one")
    table(protocol_version=2).save(tmp_path / "two")
    table(protocol_version=2, scores=other, weights_sha256={}).save(tmp_path / "three")
    first, second = joined_tables([tmp_path / "one", tmp_path / "two", tmp_path / "three"])
    assert (first.protocol_version, list(first.scores)) == (1, ["random:net", "net.pcd"])
    assert (second.protocol_version, list(second.scores)) == (2, ["random:net", "net.pcd", "x"])


def test_runs_without_an_evaluation_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no evaluation.json; did the run finish"):
        joined_tables([tmp_path])
    table().save(tmp_path / "done")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: there is no evaluation.json"):
        joined_tables([tmp_path / "done", tmp_path / "empty"])
    with pytest.raises(DataError, match=r"aaa: no such folder"):
        joined_tables([Path("a" * 300)])  # longer than a file name may be
