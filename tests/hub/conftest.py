"""A loopback Hub, and the unmodified client against it in a process of its own."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.hub.server import LoopbackHub

Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def client(hub: LoopbackHub) -> Client:
    """Run a script with huggingface_hub; another version of it may lie on PYTHONPATH.

    Each identity should have its own ``home``: a warm cache hides a refused token.
    """

    def run(
        code: str,
        *,
        token: str = "",
        home: Path | None = None,
        xet: bool = False,
        timeout: int = 10,
        env: Mapping[str, str] = {},
    ) -> subprocess.CompletedProcess[str]:
        clean = hub.env(home, token, xet=xet, timeout=timeout)
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**clean, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run
