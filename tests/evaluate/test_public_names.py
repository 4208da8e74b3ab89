"""``pcd_hub.evaluate`` as a user of the bare package sees it."""

import subprocess
import sys
import types

import pcd_hub.evaluate

OF_THE_EXTRA = ("accelerate", "tyro", "matplotlib", "datasets", "cv2", "pycocotools")


def test_public_names_are_those_in_all():
    visible = {
        name
        for name, value in vars(pcd_hub.evaluate).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible == set(pcd_hub.evaluate.__all__)


def test_nothing_of_the_extra_is_needed():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({OF_THE_EXTRA}))\n"
        "from pcd_hub.evaluate import *\n"
        "print(open_model('random:test_resnet').name)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "random:test_resnet\n", done.stderr
