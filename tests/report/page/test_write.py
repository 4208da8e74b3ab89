import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.report.page.write import report_runs
from tests.report.page.making import finished_run


@pytest.fixture
def folder(tmp_path):
    return finished_run(tmp_path / "run")


def test_a_run_gets_its_page_and_the_same_as_plain_text(folder):
    assert report_runs([folder]) == folder / "report.html"
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (folder / "report.md").read_text().startswith("# test_resnet.pcd: report of the run")
    first = (folder / "report.html").read_bytes()
    report_runs([folder])
    assert (folder / "report.html").read_bytes() == first


def test_another_file_leaves_the_run_as_it_is(folder, tmp_path):
    before = sorted(folder.rglob("*"))
    assert report_runs([folder], tmp_path / "page.html") == tmp_path / "page.html"
    assert sorted(folder.rglob("*")) == before


def test_several_runs_are_one_page_in_the_working_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = finished_run(tmp_path / "other")
    report_runs([folder, other])
    assert "2 runs side by side" in (tmp_path / "comparison.html").read_text()
    report_runs([folder, other])  # an earlier page is replaced


def test_a_file_that_is_no_report_is_not_replaced(folder, tmp_path):
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(
        ConfigError, match="notes.html exists and is not a page of pcd-hub; name another"
    ):
        report_runs([folder], tmp_path / "notes.html")
    with pytest.raises(ConfigError, match="exists and is not a page"):
        report_runs([folder], tmp_path)
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_one_line(folder, tmp_path):
    with pytest.raises(ConfigError, match="cannot write .*none/a.html .No such file or directory"):
        report_runs([folder], tmp_path / "none" / "a.html")
