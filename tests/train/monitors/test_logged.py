"""The warnings of a run are those of all its parts."""

import json
import logging

import pytest

from pcd_hub.train.monitors.logged import logged_warnings
from tests.train.conftest import run

log = logging.getLogger("pcd_hub")


def test_each_warning_is_kept_once_and_written_at_once(tmp_path):
    file = tmp_path / "warnings.json"
    file.write_text('["earlier", "second"]')
    with logged_warnings() as warnings:
        log.warning("first %d", 1)
        log.info("no warning")
        warnings.keep_in(file)
        log.warning("second")
        log.warning("third")
        assert json.loads(file.read_text()) == ["earlier", "second", "first 1", "third"]
    assert warnings.messages == ["earlier", "second", "first 1", "third"]


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', "[1]", "7"])
def test_a_damaged_file_loses_no_new_warning(tmp_path, content):
    file = tmp_path / "warnings.json"
    file.write_text(content)
    with logged_warnings() as warnings:
        warnings.keep_in(file)
        log.warning("new")
    assert json.loads(file.read_text())[-1] == "new"


def test_without_warnings_there_is_no_file(tmp_path):
    with logged_warnings() as warnings:
        warnings.keep_in(tmp_path / "warnings.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_pictures")
def test_the_report_of_a_resumed_run_has_the_warnings_of_its_first_part(tiny, tmp_path):
    folder = run(tiny, tmp_path / "run", "--run.no-store")
    for file in (folder / "checkpoints").glob("step_00000006.pt*"):
        file.unlink()
    (folder / "report.html").unlink()
    (folder / "warnings.json").write_text('["12 images cannot be decoded"]')
    run(tiny, folder, "--run.no-store", "--run.resume", "--run.max-steps=7")
    assert "12 images cannot be decoded" in (folder / "report.md").read_text()
