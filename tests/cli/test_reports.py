import pytest

from pcd_hub import cli
from tests.report.page.making import finished_run


def test_report_prints_the_page_of_a_run_or_of_several(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [str(finished_run(tmp_path / name)) for name in ("one", "two")]
    cli.main(["report", runs[0]])
    assert capsys.readouterr().out == f"{runs[0]}/report.html\n"
    cli.main(["report", *runs])
    assert capsys.readouterr().out == "comparison.html\n"
    cli.main(["report", *runs, "--output", "page.html"])
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "comparison.html").read_bytes()


def test_report_refuses_other_folders_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(tmp_path)])
    assert caught.value.code == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: {tmp_path} has no record.json; expected the folder of")


def test_gallery_prints_the_page(tmp_path, capsys):
    cli.main(["gallery", str(tmp_path / "site")])
    assert capsys.readouterr().out.endswith(f"weights: {tmp_path / 'site' / 'index.html'}\n")
