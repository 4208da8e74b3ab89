"""Provenance of a result: time, commit, library versions, hardware."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import pcd_hub

_ROOT = Path(__file__).parents[3]
_CODE = ("pcd_hub", "recipes", "scripts", "pyproject.toml")
_LIBRARIES = (
    *("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pycocotools"),
    "opencv-python-headless",  # renders the views; optional on some systems
)


def provenance(
    *, code: Mapping[str, Any] | None = None, hardware: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe time, code, library versions and hardware, for a record.

    Args:
        code: Commit and dirty flag when the run started; the current ones if not given.
        hardware: Facts to add about the hardware.
    """
    versions = {name: installed for name in _LIBRARIES if (installed := _version(name))}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": {"pcd_hub": pcd_hub.__version__, **(code or git_state())},
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {
            "device": gpu or f"CPU, {torch.get_num_threads()} threads",
            **(hardware or {}),
        },
    }


def git_state() -> dict[str, Any]:
    """Return the commit of the checkout, and whether its code differs; None outside a checkout.

    New files next to the code count; files of runs, trackers and dry runs do not.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(_ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", *_CODE)
    except FileNotFoundError:  # git is not installed
        commit = status = None
    return {"commit": commit, "dirty": bool(status) if status is not None else None}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
