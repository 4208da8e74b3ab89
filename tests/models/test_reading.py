import os
import sys
from pathlib import Path

import pytest

from pcd_hub.models.reading import read_bounded


def test_a_file_of_at_most_that_many_bytes_is_read_whole(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bounded(tmp_path / "file", 4) == read_bounded(tmp_path / "link", 5) == b"1234"
    with pytest.raises(ValueError, match="has 4 bytes, at most 3 are read"):
        read_bounded(tmp_path / "file", 3)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(OSError, match="should be a file, and it is a folder, a pipe or"):
            read_bounded(tmp_path / name, 10)
    with pytest.raises(OSError, match="should be a file, and there is none"):
        read_bounded(tmp_path / "missing", 10)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_file_that_has_more_than_it_says_is_refused():
    with pytest.raises(ValueError, match="says that it has 0 bytes, and has not"):
        read_bounded(Path("/proc/version"), 10**6)
