"""Facts about this installation and machine, for ``pcd-hub doctor``. Nothing here raises."""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
from huggingface_hub import constants
from packaging.requirements import InvalidRequirement, Requirement

import pcd_hub
from pcd_hub.data.resident.memory import free_bytes
from pcd_hub.data.workers import num_cores
from pcd_hub.errors import PCDHubError, first_line
from pcd_hub.files.writable import check_writable, free_space
from pcd_hub.models.teacher_sources.choice import cached_choice
from pcd_hub.train.run_folder.provenance import installed_version
from pcd_hub.train.teacher.cache.folders import default_place
from pcd_hub.weights import store
from pcd_hub.weights.hub.address import redacted

_TIMEOUT_SECONDS = 5.0
_SHOWN = ("PCD_HUB_", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_HOME", "HF_ENDPOINT", "TMPDIR")
_SHOWN_EXACTLY = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NO_COLOR")
_USED_FOR = {
    "accelerate": "distill, probe, compare and all recipes",
    "tyro": "distill, probe, compare and all recipes",
    "matplotlib": "pictures of probes and recipes",
    "datasets": "images from hf:ORG/NAME and hf-disk:DIR",
    "opencv-python-headless": "distillation and pre-training: colours and blur of the views",
    "pycocotools": "recipes/detect.py",
    "tifffile": "images with more than three bands",
    "imagecodecs": "compressed TIFF images with more than three bands",
    "shtab": "pcd-hub completion",
}


class Package(NamedTuple):
    """A package that pcd_hub or one of its extras requires."""

    name: str
    extra: str
    """Empty if pcd_hub always requires it."""
    installed: str | None
    required: str
    used_for: str

    @property
    def fits(self) -> bool:
        """Return whether a version that is recent enough is installed."""
        if self.installed is None:
            return False
        return Requirement(f"x{self.required}").specifier.contains(self.installed, prereleases=True)


class Place(NamedTuple):
    """A folder that pcd_hub reads or writes."""

    what: str
    path: str
    problem: str | None
    """Why it cannot be written; None if it can."""
    free_gb: float | None


def packages() -> list[Package]:
    """Return what pcd_hub requires, with the installed versions; empty if it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError, InvalidRequirement):
        wanted = map(Requirement, importlib.metadata.requires("pcd_hub") or ())
        return list({(one.name, one.extra): one for one in map(_package, wanted)}.values())
    return []


def _package(wanted: Requirement) -> Package:
    extra = ""
    if wanted.marker is not None:
        extra = str(wanted.marker).rpartition("extra == ")[2].strip("\"'")
    return Package(
        name=wanted.name,
        extra=extra,
        installed=installed_version(wanted.name),
        required=str(wanted.specifier),
        used_for=_USED_FOR.get(wanted.name, "" if extra else "pcd_hub"),
    )


def versions() -> dict[str, str]:
    """Return the versions of Python, pcd_hub and the system."""
    return {
        "python": platform.python_version(),
        "pcd_hub": pcd_hub.__version__,
        "system": platform.platform(),
    }


def machine() -> dict[str, Any]:
    """Return devices, cores and memory that this process can use."""
    gpus = []
    with suppress(RuntimeError, AssertionError):  # a driver that does not fit
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            gpus.append({"name": facts.name, "memory_gb": round(facts.total_memory / 1e9, 1)})
    memory = free_bytes(torch.device("cpu"))
    return {
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
        "cpu_cores": num_cores(),
        "memory_gb": None if memory is None else round(memory / 1e9, 1),
        "shm_gb": _free_gb(Path("/dev/shm")),  # noqa: S108 - loader processes share batches there
    }


def places() -> list[Place]:
    """Return the folders that pcd_hub writes, and whether it can."""
    return [
        _place("runs", lambda: Path("runs"), "use --output-dir"),
        _place("store", store.home, "set PCD_HUB_HOME"),
        _place("teacher cache", default_place, "set PCD_HUB_HOME or use --teacher.cache DIR"),
        _place("Hugging Face cache", lambda: Path(constants.HF_HUB_CACHE), "set HF_HUB_CACHE"),
        _place("temporary files", lambda: Path(tempfile.gettempdir()), "set TMPDIR"),
    ]


def _place(what: str, find: Callable[[], Path], remedy: str) -> Place:
    path = Path()
    try:
        path = find()
        check_writable(path, what=f"the folder of {what},", remedy=remedy)
    except PCDHubError as error:
        return Place(what, str(path), first_line(error), None)
    except OSError as error:
        return Place(what, str(path), f"{error.strerror or error}; {remedy}", None)
    return Place(what, str(path.absolute()), None, _free_gb(path.absolute()))


def _free_gb(path: Path) -> float | None:
    with suppress(OSError):
        return round(free_space(path) / 1e9, 2)
    return None


def hub(*, offline: bool) -> dict[str, Any]:
    """Return the endpoint, whether it answers, and whether there is a token; never the token.

    Args:
        offline: Do not try to reach it.
    """
    endpoint = constants.ENDPOINT
    if offline or constants.HF_HUB_OFFLINE:
        problem = "not tried: " + ("--offline" if offline else "HF_HUB_OFFLINE is set")
        reachable = None
    else:
        problem = _no_answer(endpoint)
        reachable = problem is None
    return {
        "endpoint": redacted(endpoint),
        "reachable": reachable,
        "problem": problem,
        "token": token() is not None,
    }


def default_teacher() -> str | None:
    """Return the default teacher that is in the cache; None if a run has to download it."""
    choice = cached_choice("cuda" if torch.cuda.is_available() else "cpu")
    return choice and choice.source


def _no_answer(endpoint: str) -> str | None:
    """Return why the endpoint does not answer, or None."""
    try:
        session = huggingface_hub.utils.get_session()
        session.head(endpoint, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # of any HTTP client, or a malformed endpoint
        return f"{type(error).__name__}: {redacted(first_line(error))}"
    return None


def token() -> str | None:
    """Return the user's token; only to tell whether there is one, and to keep it out of output."""
    try:
        return huggingface_hub.get_token()
    except (OSError, ValueError):  # an unreadable file
        return None


def variables() -> dict[str, str]:
    """Return the environment variables that change what pcd_hub does."""
    names = (name for name in os.environ if name.startswith(_SHOWN) or name in _SHOWN_EXACTLY)
    return {name: redacted(os.environ[name]) for name in sorted(names)}


def without_secret(value: Any, secrets: Iterable[str]) -> Any:
    """Return a JSON value whose texts have ``***`` in place of each secret."""
    if isinstance(value, dict):
        return {name: without_secret(one, secrets) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_secret(one, secrets) for one in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
    return value
