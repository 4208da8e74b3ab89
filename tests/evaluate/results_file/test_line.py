"""One line of a results file: written, read and refused."""

import dataclasses
import json

import pytest

from pcd_hub.errors import DataError
from pcd_hub.evaluate.results_file.line import Metric, parse_line
from tests.evaluate.results_file.making import line


def test_a_line_states_what_was_measured_and_by_what():
    raw = line(sha256="a" * 64).encode()
    assert raw.count(b"\n") == 1
    assert json.loads(raw) == {
        "model": "net.pcd",
        "weights_sha256": "a" * 64,
        "architecture": "net",
        "task": "linear segmentation probe",
        "dataset": "streets/val",
        "data_sha256": "d" * 64,
        "images": 90,
        "protocol_version": 1,
        "protocol": "frozen",
        "seeds": [0, 1],
        "metrics": {
            "mean IoU": {"unit": "%", "mean": 30.5, "std": 0.71, "n": 2, "values": [30.0, 31.0]},
            "effective rank": {"unit": "", "mean": 2.25, "std": 0.35, "n": 2, "values": [2.0, 2.5]},
        },
        "command": "python recipes/linear_seg.py --data.source streets",
        "versions": {"pcd_hub": "0.1.0", "python": "3.12.1", "torch": "2.6.0"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    assert parse_line(raw, what="x") == line(sha256="a" * 64)


def test_a_table_from_a_line_has_all_that_is_compared():
    table = line(sha256="a" * 64, protocol_version=2).table()
    assert (table.protocol_version, table.data_sha256, table.seeds) == (2, "d" * 64, (0, 1))
    assert table.scores == {"net.pcd": {"mean IoU": (30.0, 31.0), "effective rank": (2.0, 2.5)}}
    assert table.weights_sha256 == {"net.pcd": "a" * 64}
    assert table.details["models"]["net.pcd"]["architecture"] == "net"
    assert line().table().weights_sha256 == {}


def test_one_seed_has_no_deviation():
    one = Metric(unit="%", mean=30.0, std=None, n=1, values=(30.0,))
    single = dataclasses.replace(line(), seeds=(3,), metrics={"mean IoU": one})
    assert parse_line(single.encode(), what="x") == single
    with pytest.raises(DataError, match="is inconsistent"):
        dataclasses.replace(
            single, metrics={"mean IoU": dataclasses.replace(one, std=0.0)}
        ).encode()


def test_whole_numbers_are_scores():
    raw = json.loads(line().encode())
    raw["seeds"] = [5]
    raw["metrics"] = {"mean IoU": {"unit": "%", "mean": 30, "n": 1, "values": [30]}}
    assert parse_line(json.dumps(raw).encode(), what="x").metrics == {
        "mean IoU": Metric(unit="%", mean=30.0, std=None, n=1, values=(30.0,))
    }


def test_fields_of_a_newer_version_are_left_out_and_the_version_may_be_missing():
    raw = json.loads(line().encode())
    raw["colour"] = "blue"
    raw["metrics"]["mean IoU"]["median"] = 30
    del raw["protocol_version"], raw["weights_sha256"]
    assert parse_line(json.dumps(raw).encode(), what="x") == line()


def test_a_name_that_is_no_text_is_written_and_read():
    odd = dataclasses.replace(line(), command="probe caf\udce9")
    assert parse_line(odd.encode(), what="x").command == "probe caf?"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": 3}, "model is 3; it must be a string"),
        ({"weights_sha256": "A" * 64}, "weights_sha256 is 'AAA.*64 lower-case hex digits"),
        ({"data_sha256": ""}, "data_sha256 is ''"),
        ({"images": -1}, "images is -1"),
        ({"protocol_version": 0}, "protocol_version is 0; it must be an integer from 1"),
        ({"protocol_version": "1"}, "protocol_version is '1'"),
        ({"created": "today"}, "created is 'today'; it must be a time as ISO 8601"),
        ({"seeds": []}, "seeds is"),
        ({"seeds": [0, 0]}, "is inconsistent"),
        ({"seeds": [0]}, "is inconsistent: .* one value for each of its 1 seeds"),
        ({"metrics": {}}, "is inconsistent"),
        ({"metrics": {"a\x1b\n": 3}}, ", a.. is 3, not an object"),
    ],
)
def test_a_line_that_is_not_a_result_is_refused(changed, message):
    raw = {**json.loads(line().encode()), **changed}
    with pytest.raises(DataError, match=f"line 7.*{message}.*; correct or remove the line"):
        parse_line(json.dumps(raw).encode(), what="line 7")


@pytest.mark.parametrize(
    "changed",
    [{"mean": 30.52}, {"std": 0.73}, {"std": None}, {"n": 3}, {"values": [30.0, 31.1]}],
)
def test_numbers_that_contradict_each_other_are_refused(changed):
    raw = json.loads(line().encode())
    raw["metrics"]["mean IoU"] |= changed
    with pytest.raises(DataError, match="is inconsistent"):
        parse_line(json.dumps(raw).encode(), what="line 7")


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b"null", b"\xff", b'{"model": "a", "model": "b"}', b"[" * 10_000]
)
def test_bytes_that_are_not_a_result_are_refused(raw):
    with pytest.raises(DataError, match="line 7"):
        parse_line(raw, what="line 7")


def test_a_score_that_is_not_finite_is_never_written():
    nan = Metric(unit="%", mean=float("nan"), std=None, n=1, values=(float("nan"),))
    with pytest.raises(DataError, match=r"the result of net.pcd is not strict JSON"):
        dataclasses.replace(line(), seeds=(0,), metrics={"mean IoU": nan}).encode()
