import json
from pathlib import Path

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.train.run_folder import folder as run_folder
from pcd_hub.train.run_folder.folder import new_folder
from tests.train.conftest import run

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("place", ["/proc/foo", "/proc/self", "/dev/null/x", "a" * 300])
def test_an_output_folder_that_cannot_be_is_one_line(place):
    with pytest.raises(ConfigError, match=rf"(run's folder|output-dir) {place}: .*; name another"):
        new_folder(Path(place), "x")


def test_another_run_is_not_overwritten(tiny, tmp_path):
    folder = run(tiny, tmp_path / "run", "--run.no-store")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigError, match="is not empty; continue .* --resume .*, or name"):
        run(tiny, folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_two_runs_that_start_in_one_folder_at_the_same_time(tiny, tmp_path, monkeypatch):
    begin = run_folder.new_folder

    def overtaken(*arguments):
        folder = begin(*arguments)
        (folder / "config.json").write_text("of the other")
        return folder

    monkeypatch.setattr(run_folder, "new_folder", overtaken)
    with pytest.raises(ConfigError, match="another run has just started in .*run; name another"):
        run(tiny, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == "of the other"


def test_a_change_that_was_taken_back_does_not_return(tiny, tmp_path):
    folder = run(tiny, tmp_path / "run")
    length = json.loads((folder / "config.json").read_text())["run"]["max_steps"]
    tried = {"after_step": length, "what": "--run.max-steps", "from": length, "to": 6000}
    (folder / "changes.json").write_text(json.dumps([tried]))  # killed before a checkpoint
    run(tiny, folder, "--run.resume")
    assert not (folder / "changes.json").exists()


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    number, taken = run_folder._numbered, []

    def overtaken(path, *, resume):
        found = number(path, resume=resume)
        if not taken:
            taken.append(found)
            found.mkdir(parents=True)  # by another run
        return found

    monkeypatch.setattr(run_folder, "_numbered", overtaken)
    assert run_folder.new_folder(None, "a").as_posix() == "runs/a-2"


def test_a_folder_that_cannot_be_made_is_reported(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"cannot write .*file/run: Not a directory; name another --run.output"
    ):
        run(tiny, tmp_path / "file" / "run")
