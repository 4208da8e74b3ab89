"""Results tables: saved, loaded, joined, and as measurements."""

import dataclasses
import json

import pytest

from pcd_hub.errors import DataError
from pcd_hub.evaluate.results import Evaluation, join
from tests.evaluate.tables import table


def test_a_saved_table_is_loaded(tmp_path):
    table().save(tmp_path)
    assert Evaluation.load(tmp_path) == table()
    assert Evaluation.load(tmp_path / "evaluation.json") == table()
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is not an evaluation"),
        ("[]", "is not an evaluation"),
        ('{"task": "x"}', "is not an evaluation"),
    ],
)
def test_a_file_that_is_not_an_evaluation_is_named(tmp_path, text, message):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(DataError, match=rf"{tmp_path}/evaluation.json {message}"):
        Evaluation.load(tmp_path)
    with pytest.raises(DataError, match="nowhere is not an evaluation"):
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
def test_an_incomplete_table_is_not_loaded(tmp_path, scores):
    raw = dataclasses.asdict(table(scores=scores))
    (tmp_path / "evaluation.json").write_text(json.dumps(raw))
    with pytest.raises(
        DataError, match="is incomplete: expected a finite score of every model for every metric"
    ):
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
        ({"protocol_version": 2}, "differ in protocol version: 1 and 2"),
        ({"images": 91}, "differ in images: 90 and 91"),
        ({}, "random:net was scored twice in linear segmentation probe at seed 0"),
        (
            {"seeds": (7, 8), "scores": {"x": table().scores["net.pcd"]}},
            r"x has seeds \[7, 8\], expected \[0, 1\]",
        ),
    ],
)
def test_runs_that_differ_are_not_joined(changed, message):
    with pytest.raises(DataError, match=message):
        join([table(), table(**changed)])


def test_results_on_other_images_of_the_same_name_are_not_joined():
    scores = {"x": table().scores["net.pcd"]}
    one, other, unknown = table(data_sha256="a" * 64), table(data_sha256="b" * 64), table()
    with pytest.raises(DataError, match="are of different images .data sha256 a{12} and b{12}"):
        join([one, dataclasses.replace(other, scores=scores)])
    joined = join([unknown, dataclasses.replace(one, scores=scores)])
    assert joined.data_sha256 == "a" * 64, "an old file does not state its images"


def test_a_file_without_a_protocol_version_is_of_version_1(tmp_path):
    raw = dataclasses.asdict(table())
    (tmp_path / "evaluation.json").write_text(json.dumps({**raw, "protocol_version": 3}))
    assert Evaluation.load(tmp_path).protocol_version == 3
    old = {k: v for k, v in raw.items() if k not in {"protocol_version", "data_sha256"}}
    (tmp_path / "evaluation.json").write_text(json.dumps(old))
    assert Evaluation.load(tmp_path) == dataclasses.replace(table(), protocol_version=1)


@pytest.mark.parametrize("version", [0, "1", True, None, 1.5])
def test_a_wrong_protocol_version_is_refused(tmp_path, version):
    raw = {**dataclasses.asdict(table()), "protocol_version": version}
    (tmp_path / "evaluation.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"protocol_version {version!r}: expected an integer >= 1"):
        Evaluation.load(tmp_path)


def test_two_weights_of_one_name_are_not_two_seeds_of_one():
    other = table(seeds=(2,), weights_sha256={"net.pcd": "b" * 64})
    other = dataclasses.replace(
        other,
        scores={m: {"mean IoU": (50.0,), "effective rank": (5.0,)} for m in table().scores},
    )
    with pytest.raises(
        DataError, match="net.pcd is not the same weight in all tables .* .sha256 aaa"
    ):
        join([table(), other])


def test_no_metric_is_lost_however_long_the_names():
    long = table(dataset="/data/" + "photographs/" * 12, task="object detection " * 5)
    assert "| model | mean IoU (%) | effective rank |" in long.table()
    names = long.measurements("net.pcd", "net.pcd")
    assert [m.metric for m in names.values()] == ["mean IoU", "effective rank"]
    near = table(dataset=long.dataset + "x", task=long.task)
    assert not set(names) & set(near.measurements("net.pcd", "net.pcd"))
    second = dataclasses.replace(long, protocol_version=2)
    later = second.measurements("net.pcd", "net.pcd")
    assert not set(names) & set(later), "those of version 1 stay in a record"
    assert {m.protocol_version for m in later.values()} == {2}
    assert "Protocol version 2: frozen. Again" in second.table()


def test_another_weight_of_the_same_name_keeps_its_row():
    scores = {"local-dir:run/export": table().scores["random:net"], **table().scores}
    both = table(scores=scores)
    measured = both.measurements("local-dir:run/export", "net.pcd")
    (iou, _) = measured.values()
    assert iou.subject == "net.pcd"
    assert iou.means == {"net.pcd": 12.0, "random:net": 12.0, "net.pcd (weights aaaaaaaa)": 30.5}


def test_a_row_needs_a_score_of_every_seed_and_metric():
    full = table()
    name, row = next(iter(full.scores.items()))
    metric = next(iter(row))
    for lacking in (
        {key: values[:-1] for key, values in row.items()},
        {key: values for key, values in row.items() if key != metric},
    ):
        with pytest.raises(DataError, match=r"expected one for each of its seeds .*table.seeds"):
            full.with_model(name, lacking, weights_sha256=None, details={})
