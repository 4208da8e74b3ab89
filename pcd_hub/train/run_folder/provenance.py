"""Provenance of a result: time, commit, library versions, hardware."""

import base64
import hashlib
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

import pcd_hub

_ROOT = Path(__file__).parents[3]
_CODE = ("pcd_hub", "recipes", "scripts", "pyproject.toml")
_LIBRARIES = (
    *("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pycocotools"),
    "opencv-python-headless",  # renders the views
)


def provenance(
    *, code: Mapping[str, Any] | None = None, hardware: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe time, code, library versions and hardware, for a record.

    Args:
        code: Commit and dirty flag when the run started; the current ones if not given.
        hardware: Facts to add about the hardware.
    """
    versions = {name: installed for name in _LIBRARIES if (installed := installed_version(name))}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": {"pcd_hub": pcd_hub.__version__, **(code or code_state())},
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {
            "device": gpu or f"CPU, {torch.get_num_threads()} threads",
            **(hardware or {}),
        },
    }


def code_state() -> dict[str, Any]:
    """Identify the code that runs, and report whether it differs from what was committed or built.

    In a checkout: the commit. Installed from a wheel: the sha256 of the package's lines in the
    wheel's RECORD, which hold the hash of every file. New files next to the code of a checkout
    count as changes; files of runs, trackers and dry runs do not.
    """
    return _checkout_state() or _wheel_state() or {"commit": None, "dirty": None}


def _checkout_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(_ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        # An environment inside somebody's checkout is not a checkout of this package.
        if not git("ls-files", "--error-unmatch", "--", "pcd_hub/__init__.py"):
            return None
        commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", *_CODE)
    except FileNotFoundError:  # git is not installed
        return None
    return {"commit": commit, "dirty": bool(status) if status is not None else None}


def _wheel_state() -> dict[str, Any] | None:
    try:
        files = distribution("pcd_hub").files or []
    except PackageNotFoundError:
        return None
    ours = sorted((str(file), file) for file in files if file.parts[0] == "pcd_hub" and file.hash)
    if not ours or Path(str(ours[0][1].locate())).parent != _ROOT / "pcd_hub":
        return None  # another copy of the package runs
    digest, dirty = hashlib.sha256(), False
    for name, file in ours:
        assert file.hash is not None
        digest.update(f"{name},{file.hash.mode}={file.hash.value}\n".encode())
        dirty |= _hash(Path(str(file.locate())), file.hash.mode) != file.hash.value
    return {"commit": None, "wheel_sha256": digest.hexdigest(), "dirty": dirty}


def _hash(path: Path, algorithm: str) -> str:
    """Hash a file as a wheel's RECORD does: base64 without padding."""
    if not path.is_file():
        return ""
    digest = hashlib.new(algorithm, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def installed_version(library: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None
