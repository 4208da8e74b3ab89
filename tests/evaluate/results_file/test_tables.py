"""Results files become tables."""

import dataclasses

import pytest

from pcd_hub.errors import DataError
from pcd_hub.evaluate.comparison import joined_tables
from pcd_hub.evaluate.results_file.file import append_result
from tests.evaluate.results_file.making import line, rescored


@pytest.fixture
def written(tmp_path):
    def write(*lines, name="results.jsonl"):
        for one in lines:
            append_result(tmp_path / name, one)
        return tmp_path / name

    return write


def test_lines_of_one_evaluation_are_one_table(written):
    (table,) = joined_tables([written(line("a"), rescored(line("b"), 40.0))])
    assert {name: row["mean IoU"] for name, row in table.scores.items()} == {
        "a": (30.0, 31.0),
        "b": (40.0, 40.0),
    }
    assert "| b | **40.00 ± 0.00** |" in table.table()
    assert set(table.details["models"]) == {"a", "b"}


@pytest.mark.parametrize(
    "changed",
    [
        {"protocol_version": 2},
        {"protocol": "another"},
        {"dataset": "roads/val"},
        {"images": 91},
        {"units": {"effective rank": "", "mean IoU": "%"}},
    ],
)
def test_lines_that_are_not_comparable_never_share_a_table(written, changed):
    tables = joined_tables([written(line("a"), line("b", **changed))])
    assert [list(table.scores) for table in tables] == [["a"], ["b"]]


def test_other_seeds_and_other_images_of_the_same_name_are_other_tables(written):
    later = dataclasses.replace(line("b"), seeds=(2, 3))
    other = dataclasses.replace(line("c"), data_sha256="e" * 64)
    assert len(joined_tables([written(line("a"), later, other)])) == 3


def test_a_run_joins_the_file_it_was_compared_with(written, tmp_path):
    file = written(line("a"))
    own = dataclasses.replace(rescored(line("mine"), 50.0).table(), details={})
    own.save(tmp_path / "run")
    (table,) = joined_tables([file, tmp_path / "run"])
    assert list(table.scores) == ["mine", "a"]
    append_result(file, rescored(line("mine"), 50.0))
    (again,) = joined_tables([file, tmp_path / "run"])
    assert list(again.scores) == ["mine", "a"], "the line is a copy of the run"


def test_rows_of_one_name_are_told_apart(written):
    one = written(line("a", sha256="a" * 64), line("a", sha256="b" * 64), line("r"))
    other = written(rescored(line("r"), 12.0), line("a", sha256="b" * 64), name="other.jsonl")
    (table,) = joined_tables([one, other])
    assert list(table.scores) == ["a", "a (weights bbbbbbbb)", "r", "r (other.jsonl, line 1)"]
    assert table.weights_sha256 == {"a": "a" * 64, "a (weights bbbbbbbb)": "b" * 64}


def test_a_file_without_results_and_one_that_is_missing_are_named(tmp_path):
    (tmp_path / "results.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"results.jsonl: expected at least one result, found none"):
        joined_tables([tmp_path / "results.jsonl"])
    with pytest.raises(DataError, match=r"missing.jsonl: no such folder"):
        joined_tables([tmp_path / "missing.jsonl"])
