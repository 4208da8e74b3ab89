"""Fixtures of all tests: no network, no user's store, small and repeatable."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from pathlib import Path

import hypothesis  # noqa: F401 - trio's plugin for it must start before gc.freeze
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        no_gpu = pytest.mark.skip(reason="needs CUDA")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(no_gpu)


def pytest_collection_finish() -> None:
    """Spare every collection of garbage, of which a run makes several, the modules and tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own store, Hugging Face cache and shipped weights (none), a fixed seed, and
    one thread."""
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "store"))
    monkeypatch.setattr("pcd_hub.weights.shipped.FOLDER", tmp_path / "shipped")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PCD_HUB_LOCAL", raising=False)
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def jaxtyping_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own checks are under test, not those of the type checker that runs before them."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
