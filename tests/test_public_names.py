import importlib
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pcd_hub


def test_what_is_visible_is_what_is_promised():
    visible = {
        name
        for name, value in vars(pcd_hub).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    used = {"register_entries", "read_by_name", "has_weight", "Callable", "NoReturn"}
    lazy = {"Distilled", "distill"}
    assert (visible - used - {"TYPE_CHECKING"}) | lazy == set(pcd_hub.__all__)
    assert pcd_hub.distill.__module__ == "pcd_hub.train.own_images.python"


def test_the_import_does_not_need_the_extra():
    code = """
import sys
for name in ("accelerate", "tyro", "cv2", "datasets", "matplotlib"):
    sys.modules[name] = None
import pcd_hub
assert "pcd_hub.train" not in sys.modules
from pcd_hub import *
try:
    distill("photos")
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith('pip install ".[train]" in the clone of pcd_hub\n')


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(pcd_hub, "distil")


def test_the_package_says_that_it_is_typed():
    assert (Path(pcd_hub.__file__).parent / "py.typed").exists()


OPTIONAL = {"onnx", "onnxruntime", "executorch", "tifffile"}
"""Libraries that modules of optional features import at their top."""


def test_every_module_can_be_imported():
    modules = pkgutil.walk_packages(pcd_hub.__path__, "pcd_hub.")
    imported = 0
    for module in modules:
        if module.name != "pcd_hub.__main__":
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                assert error.name in OPTIONAL, module.name  # noqa: PT017
            imported += 1
    assert imported > 100
