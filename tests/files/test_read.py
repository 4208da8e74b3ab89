import os
import sys
from pathlib import Path

import pytest

from pcd_hub.files.read import read_bounded


def test_a_file_of_at_most_that_many_bytes_is_read_whole(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bounded(tmp_path / "file", 4) == read_bounded(tmp_path / "link", 5) == b"1234"
    with pytest.raises(ValueError, match="has 4 bytes, expected at most 3"):
        read_bounded(tmp_path / "file", 3)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(OSError, match="is a folder, a pipe or a device, expected"):
            read_bounded(tmp_path / name, 10)
    with pytest.raises(OSError, match="is missing, expected a regular file"):
        read_bounded(tmp_path / "missing", 10)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_file_that_has_more_than_it_says_is_refused():
    with pytest.raises(ValueError, match="reports 0 bytes but holds another"):
        read_bounded(Path("/proc/version"), 10**6)
