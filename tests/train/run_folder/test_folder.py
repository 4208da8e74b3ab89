from pathlib import Path

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.train.run_folder.folder import new_folder


@pytest.mark.parametrize("place", ["/proc/foo", "/proc/self", "/dev/null/x", "a" * 300])
def test_an_output_folder_that_cannot_be_is_one_line(place):
    with pytest.raises(ConfigError, match=rf"(run's folder|output-dir) {place}: .*; name another"):
        new_folder(Path(place), "x")
