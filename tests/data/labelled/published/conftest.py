"""A server on this machine."""

import pytest

from tests.data.labelled.published.drawn_archives import running_server


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running_server() as server:
        yield server
