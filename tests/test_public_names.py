import types
from pathlib import Path

import pcd_hub


def test_what_is_visible_is_what_is_promised():
    visible = {
        name
        for name, value in vars(pcd_hub).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible - {"register_entries", "read_by_name", "has_weight"} == set(pcd_hub.__all__)


def test_the_package_says_that_it_is_typed():
    assert (Path(pcd_hub.__file__).parent / "py.typed").exists()
