"""Append to a results file: atomically, under a lock, and nothing twice."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock

from pcd_hub.errors import ConfigError, DataError, WeightError
from pcd_hub.evaluate.results_file import file as results_file
from pcd_hub.evaluate.results_file.file import append_result, check_new, read_results
from pcd_hub.weights import store
from pcd_hub.weights.manifest import weights_sha256
from tests.evaluate.results_file.making import line
from tests.evaluate.tables import table
from tests.weights.making import exported


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results" / "results.jsonl"


def test_lines_are_appended_and_read_with_their_places(file):
    append_result(file, line("a"))
    append_result(file, line("b"))
    assert read_results(file) == {
        "results.jsonl, line 1": line("a"),
        "results.jsonl, line 2": line("b"),
    }


def test_what_others_wrote_is_kept_byte_by_byte(file):
    before = b"\n" + line("a").encode().replace(b'{"model"', b'{"newer": 1,  "model"').rstrip()
    file.parent.mkdir()
    file.write_bytes(before)
    file.chmod(0o640)
    (link := file.with_name("link.jsonl")).symlink_to(file)
    append_result(link, line("b"))
    assert file.read_bytes() == before + b"\n" + line("b").encode()
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert list(read_results(link)) == ["link.jsonl, line 2", "link.jsonl, line 3"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (line("a"), line("a", command="again", dataset="renamed/val")),
        (line("a", sha256="a" * 64), line("local-dir:a/export", sha256="a" * 64)),
    ],
)
def test_a_model_is_refused_twice_in_one_evaluation(file, one, other):
    append_result(file, line("first"))
    append_result(file, one)
    before = file.read_bytes()
    with pytest.raises(
        ConfigError,
        match=r"^results.jsonl, line 2 has a result of \S+ on \S+ already, of the same images and "
        r"protocol; leave the model out, remove the line, or name another --append$",
    ):
        append_result(file, other)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [
        line("b"),
        line("a", sha256="b" * 64),
        line("a", protocol_version=2),
        line("a", protocol="another"),
        line("a", task="k-NN"),
    ],
)
def test_other_weights_protocols_and_evaluations_are_no_duplicates(file, other):
    append_result(file, line("a"))
    append_result(file, other)
    assert len(read_results(file)) == 2


def test_processes_that_append_at_the_same_time_lose_nothing(file):
    names = [f"model {number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: append_result(file, line(name)), names))
    assert sorted(one.model for one in read_results(file).values()) == sorted(names)


def test_a_failed_write_leaves_the_file_as_it_was(file, monkeypatch):
    append_result(file, line("a"))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightError, match=r"cannot write to .*results.jsonl: No space left"):
        append_result(file, line("b"))
    assert list(read_results(file).values()) == [line("a")]
    assert {path.name for path in file.parent.iterdir()} <= {file.name, f".{file.name}.lock"}


def test_a_file_that_stays_locked_is_named(file, monkeypatch):
    file.parent.mkdir()
    monkeypatch.setattr(results_file, "_LOCK_SECONDS", 0.1)
    with (
        FileLock(file.with_name(f".{file.name}.lock")),
        pytest.raises(ConfigError, match="is locked by another process for 0.1 s; wait for it"),
    ):
        append_result(file, line("a"))


def test_what_is_known_before_the_models_run_is_said_before(file, tmp_path):
    own = line().table()
    check_new(file, own, ["net.pcd"])
    assert not file.parent.exists()
    append_result(file, line("net"))
    check_new(file, own, ["other"])
    with pytest.raises(ConfigError, match="line 1 has a result of net on streets/val already"):
        check_new(file, own, ["other", "net"])
    check_new(file, table(data_sha256="e" * 64), ["net"])
    file.write_bytes(file.read_bytes() + b"{}\n")
    with pytest.raises(DataError, match=r"results.jsonl, line 2 has no model; .* remove the line"):
        check_new(file, own, ["other"])
    with pytest.raises(ConfigError, match=r"results.json: expected a file whose name ends in .jso"):
        check_new(tmp_path / "results.json", own, [])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"folder.jsonl: expected a file"):
        check_new(tmp_path / "folder.jsonl", own, [])
    (tmp_path / "text").write_text("")
    with pytest.raises(ConfigError, match="cannot write to the folder of --append"):
        check_new(tmp_path / "text" / "results.jsonl", own, [])


def test_a_weight_is_known_by_its_bytes_whatever_its_name(file, tmp_path):
    export = exported(tmp_path / "export")
    store.add("test_resnet.pcd", export)
    append_result(file, line("whatever", sha256=weights_sha256(export)))
    for name in (f"local-dir:{export}", "test_resnet.pcd"):
        with pytest.raises(ConfigError, match="line 1 has a result"):
            check_new(file, line().table(), [name])
