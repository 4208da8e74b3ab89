"""pcd_hub in this process, talking to a loopback Hub through the real client."""

import gc
import threading

import huggingface_hub.constants
import huggingface_hub.utils
import pytest

from pcd_hub.weights.hub.client import CLIENT_THREAD
from tests.hub.server import LoopbackHub


def point_client_at(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, *, token: str | None = None
) -> None:
    """What HF_ENDPOINT, HF_TOKEN and HF_HUB_DISABLE_XET do in a new process."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)


def settle() -> None:
    """Wait for the client's threads that were left behind, and close what they held open."""
    for thread in threading.enumerate():
        if thread.name == CLIENT_THREAD:
            thread.join(timeout=20)
    huggingface_hub.utils.close_session()
    gc.collect()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
