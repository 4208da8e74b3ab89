import errno
import os
import stat
from pathlib import Path

import pytest

from pcd_hub.files.write import atomic_file, atomic_write


def test_content_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
    atomic_write(tmp_path / "file", "first\n")
    atomic_write(tmp_path / "file", b"second\n")
    assert (tmp_path / "file").read_bytes() == b"second\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_permissions_follow_the_umask_unless_they_are_given(tmp_path):
    before = os.umask(0o077)
    try:
        atomic_write(tmp_path / "private", "")
        atomic_write(tmp_path / "public", "", mode=0o644)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "public")]
    assert modes == [0o600, 0o644]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failed_write_changes_nothing(tmp_path, error):
    atomic_write(tmp_path / "file", "old")

    def write():
        with atomic_file(tmp_path / "file") as draft:
            draft.write_text("new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_ino) or fsync(fd))
    replace = Path.replace

    def checked(self, target):
        assert flushed == [self.stat().st_ino]
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", checked)
    atomic_write(tmp_path / "file", "content")
    assert len(flushed) == 2, "the folder too"


def test_a_long_name_and_one_that_is_a_folder(tmp_path):
    atomic_write(tmp_path / ("a" * 250), "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        atomic_write(tmp_path / "folder", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a" * 250, "folder"]
