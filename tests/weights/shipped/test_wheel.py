"""The package as it is installed: its wheel holds the shipped weights, and loads them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "pcd_hub"
SHIPPED = sorted(folder.name for folder in (PACKAGE / "weights" / "shipped").glob("*.pcd"))
LOAD = """
import sys
from pathlib import Path
import pcd_hub, timm
assert Path(pcd_hub.__file__).is_relative_to(sys.argv[1]), pcd_hub.__file__
for name in sys.argv[2:]:
    model = timm.create_model(name, pretrained=True, features_only=True)
    print(name, pcd_hub.where(name).is_relative_to(sys.argv[1]), len(model.feature_info))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The files of the wheel, in a folder."""
    pytest.importorskip("hatchling", reason="hatchling is missing")
    folder = tmp_path_factory.mktemp("wheel")
    words = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_package_is_in_the_wheel(installed):
    def files(folder: Path) -> dict[str, int]:
        found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        return {
            name.as_posix(): path.stat().st_size
            for name, path in found.items()
            if not any(part.startswith((".", "__pyc")) for part in name.parts)
        }

    assert files(installed / "pcd_hub") == files(PACKAGE)


def test_timm_loads_the_shipped_weights_from_the_wheel(installed, tmp_path):
    assert SHIPPED
    home = {"HOME": str(tmp_path), "PCD_HUB_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(installed), *SHIPPED],
        cwd=tmp_path,
        env=os.environ | home | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{name} True 5" for name in SHIPPED], done.stderr
