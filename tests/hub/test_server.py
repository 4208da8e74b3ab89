"""The loopback Hub itself, which the tests of publishing and fetching use."""

import hashlib
import http.client
import random
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.hub.server import LoopbackHub

SMALL = random.Random(1).randbytes(300_000)


def test_a_mistake_in_the_hub_is_raised_when_it_closes(tmp_path: Path) -> None:
    hub = LoopbackHub(tmp_path)
    del hub.repos
    with pytest.raises(ExceptionGroup, match="loopback"), hub, pytest.raises(ConnectionError):
        urllib.request.urlopen(f"{hub.url}/api/models/org/net")


def test_a_large_file_is_elsewhere_by_a_signed_url_with_ranges(hub: LoopbackHub) -> None:
    net = hub.add_repo("org/net", {"model.safetensors": SMALL})
    there = get(hub, "127.0.0.1", "/org/net/resolve/main/model.safetensors")
    path = there.headers["Location"].removeprefix(hub.cdn_url)
    assert (there.status, there.headers["X-Repo-Commit"]) == (302, net)
    assert there.headers["X-Linked-Etag"] == f'"{hashlib.sha256(SMALL).hexdigest()}"'
    assert there.headers["X-Linked-Size"] == "300000"
    part = get(hub, "localhost", path, Range="bytes=299990-")
    assert (part.status, part.headers["Content-Range"]) == (206, "bytes 299990-299999/300000")
    assert get(hub, "localhost", path, Range="bytes=300000-").status == 416
    assert get(hub, "localhost", path.partition("?")[0]).status == 403
    assert get(hub, "127.0.0.1", path).status == 404


def get(hub: LoopbackHub, host: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(host, hub.server.server_port)
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    return reply


def test_a_closed_hub_leaves_no_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    with LoopbackHub(tmp_path) as hub:
        idle = http.client.HTTPConnection("127.0.0.1", hub.server.server_port)
        idle.request("GET", "/api/agent-harnesses")
        idle.getresponse().read()
    assert threading.active_count() == before
    idle.close()
