"""Tables: what is kept, joined, and put into a weight's record."""

import dataclasses
import json

import compare
import pytest

from pcd_hub.errors import ConfigError, DataError, WeightError
from pcd_hub.evaluate.results import Evaluation, join
from pcd_hub.weights import store
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import weights_sha256
from tests.weights.making import exported, files_of, flip


def table(**changed):
    one = Evaluation(
        task="linear segmentation probe",
        dataset="streets/val",
        protocol="frozen",
        command="python recipes/linear_seg.py --data.source streets",
        images=90,
        seeds=(0, 1),
        units={"mean IoU": "%", "effective rank": ""},
        scores={
            "random:net": {"mean IoU": (10.0, 14.0), "effective rank": (3.0, 3.0)},
            "net.pcd": {"mean IoU": (30.0, 31.0), "effective rank": (2.0, 2.5)},
        },
        weights_sha256={"net.pcd": "a" * 64},
    )
    return dataclasses.replace(one, **changed)


def test_what_is_saved_is_loaded(tmp_path):
    table().save(tmp_path)
    assert Evaluation.load(tmp_path) == table()
    assert Evaluation.load(tmp_path / "evaluation.json") == table()
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is no evaluation"),
        ("[]", "is no evaluation"),
        ('{"task": "x"}', "is no evaluation"),
    ],
)
def test_what_is_no_evaluation_is_named(tmp_path, text, message):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(DataError, match=rf"{tmp_path}/evaluation.json {message}"):
        Evaluation.load(tmp_path)
    with pytest.raises(DataError, match="nowhere is no evaluation"):
        Evaluation.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"a": {"mean IoU": (1.0, 2.0)}},
        {"a": {"mean IoU": (1.0,), "effective rank": (1.0, 2.0)}},
        {"a": {"mean IoU": (1.0, float("nan")), "effective rank": (1.0, 2.0)}},
    ],
)
def test_a_table_with_holes_is_not_loaded(tmp_path, scores):
    raw = dataclasses.asdict(table(scores=scores))
    (tmp_path / "evaluation.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match="is not whole: every model needs every metric"):
        Evaluation.load(tmp_path)


def test_the_best_of_every_metric_is_bold_with_its_spread():
    text = table().table()
    assert "| model | mean IoU (%) | effective rank |" in text
    assert "| random:net | 12.00 ± 2.83 | **3.00 ± 0.00** |" in text
    assert "| net.pcd | **30.50 ± 0.71** | 2.25 ± 0.35 |" in text
    assert "n = 90, mean ± standard deviation of 2 seeds" in text
    assert "frozen. Again: python recipes/linear_seg.py --data.source streets." in text


def test_other_models_and_other_seeds_become_one_table():
    other = table(
        seeds=(0, 1),
        scores={"big": {"mean IoU": (1.0, 2.0), "effective rank": (3.0, 4.0)}},
        command="again",
        weights_sha256={"big": "b" * 64},
    )
    joined = join([table(), other])
    assert list(joined.scores) == ["random:net", "net.pcd", "big"]
    assert joined.weights_sha256 == {"net.pcd": "a" * 64, "big": "b" * 64}
    assert joined.command == f"{table().command}; again"
    later = table(
        seeds=(2,),
        scores={m: {"mean IoU": (50.0,), "effective rank": (5.0,)} for m in table().scores},
    )
    assert join([later, table()]).scores["net.pcd"]["mean IoU"] == (30.0, 31.0, 50.0)
    assert join([later, table()]).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol": "thawed"}, "differ in protocol: 'frozen' and 'thawed'"),
        ({"images": 91}, "differ in images: 90 and 91"),
        ({}, "random:net stands twice in linear segmentation probe at seed 0"),
        (
            {"seeds": (7, 8), "scores": {"x": table().scores["net.pcd"]}},
            r"x has the seeds \[7, 8\]",
        ),
    ],
)
def test_what_was_not_measured_alike_is_not_joined(changed, message):
    with pytest.raises(DataError, match=message):
        join([table(), table(**changed)])


def test_two_weights_of_one_name_are_not_two_seeds_of_one():
    other = table(seeds=(2,), weights_sha256={"net.pcd": "b" * 64})
    other = dataclasses.replace(
        other,
        scores={m: {"mean IoU": (50.0,), "effective rank": (5.0,)} for m in table().scores},
    )
    with pytest.raises(DataError, match="net.pcd in two tables .* is two weights .sha256 aaa"):
        join([table(), other])


def test_no_metric_is_lost_however_long_the_names():
    long = table(dataset="/data/" + "photographs/" * 12, task="object detection " * 5)
    assert "| model | mean IoU (%) | effective rank |" in long.table()
    names = long.measurements("net.pcd", "net.pcd")
    assert [m.metric for m in names.values()] == ["mean IoU", "effective rank"]
    near = table(dataset=long.dataset + "x", task=long.task)
    assert not set(names) & set(near.measurements("net.pcd", "net.pcd"))


def test_another_weight_of_the_same_name_keeps_its_row():
    scores = {"local-dir:run/export": table().scores["random:net"], **table().scores}
    both = table(scores=scores)
    kept = both.measurements("local-dir:run/export", "net.pcd")
    (iou, _) = kept.values()
    assert iou.subject == "net.pcd"
    assert iou.means == {"net.pcd": 12.0, "random:net": 12.0, "net.pcd (weights aaaaaaaa)": 30.5}


# recipes/compare.py


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
    """The one measurement whose short name begins so."""
    (found,) = (m for name, m in record.measurements().items() if name.startswith(start))
    return found


def test_tables_go_into_the_record_and_the_card(measured, tmp_path, capsys):
    export, folder = measured
    weights = (export / "model.safetensors").read_bytes()
    (tmp_path / "run" / "record.json").write_text("{}")
    compare.main([str(folder), "--into", str(export), "--run.output-dir", str(tmp_path / "out")])
    assert "12.00 ± 2.83" in capsys.readouterr().out
    record = read_weight(export).record
    kept = named(record, "linear_segmentation_probe_streets_val_mean_iou")
    assert (kept.subject, kept.means) == (
        "test_resnet.pcd",
        {"test_resnet.pcd": 12.0, "random:net": 30.5},
    )
    assert kept.stds == {"test_resnet.pcd": 2.83, "random:net": 0.71}
    assert "scene_probe" in record.metrics, "what was there before stays"
    card = (export / "README.md").read_text()
    assert "| **test_resnet.pcd** (this weight) | 12.00 ± 2.83 | **3.00 ± 0.00** |" in card
    assert str(tmp_path) not in card.partition("## Provenance")[0]
    assert (export / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "run" / "record.json").read_text()) == record.to_dict()
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")] == []
    assert "| model |" in (tmp_path / "out" / "comparison.md").read_text()
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())[0]["images"] == 90


def test_a_stored_weight_gets_a_new_version(measured, capsys):
    export, folder = measured
    store.add("test_resnet.pcd", export)
    compare.main([str(folder.parent / "eval"), "--into", "test_resnet.pcd"])
    record = read_weight(store.where("test_resnet.pcd")).record
    assert named(record, "linear_segmentation_probe_streets_val_mean_iou")
    assert list(read_weight(export).record.metrics) == ["scene_probe"]


def test_a_weight_that_was_not_measured_gets_nothing(measured, tmp_path):
    export, folder = measured
    other = exported(tmp_path / "other")
    before = files_of(other)
    with pytest.raises(
        WeightError, match=r"did not measure .*other .*it measured local-dir:.*export"
    ):
        compare.main([str(folder), "--into", str(other)])
    assert files_of(other) == before
    (export / "NOTES.txt").write_text("mine")
    with pytest.raises(WeightError, match=r"holds NOTES.txt, which is no part of it; move it"):
        compare.main([str(folder), "--into", str(export)])
    (export / "NOTES.txt").unlink()
    flip(export / "model.safetensors")
    before = files_of(export)
    with pytest.raises(WeightError, match="sha256"):
        compare.main([str(folder), "--into", str(export)])
    assert files_of(export) == before, "a damaged one is not rewritten"


def test_runs_without_an_evaluation_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no evaluation.json; did the run finish"):
        compare.main([str(tmp_path)])
    with pytest.raises(DataError, match=r"aaa: there is no evaluation.json"):
        compare.main(["a" * 300])  # longer than a name may be
    with pytest.raises(ConfigError, match="name at least one run"):
        compare.main([])
