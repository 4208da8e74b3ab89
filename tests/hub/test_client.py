"""What the unmodified client does against the loopback Hub: what it promises, and what it does not.

Where versions of huggingface_hub differ, only what all of 1.0, 1.33 and 2.4 keep is asserted.
Another version than the installed one may lie on PYTHONPATH.
"""

import hashlib
import http.client
import json
import random
import textwrap
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.server import SIGNATURE, LoopbackHub

Ask = Callable[..., dict]

BIG = random.Random(0).randbytes(45_000_000)
SMALL = random.Random(1).randbytes(300_000)

PRELUDE = """
import json, os
from pathlib import Path
from huggingface_hub import *
from huggingface_hub import __version__

def attempt(call, *args, **kwargs):
    try:
        value = call(*args, **kwargs)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        bases = [base.__name__ for base in type(error).__mro__]
        return {"value": None, "error": bases, "status": status, "message": str(error)}
    return {"value": str(value), "error": None}
"""


@pytest.fixture
def ask(client: Callable) -> Ask:
    """Run a script and return what it left in ``answer``."""

    def run(script: str, **how: object) -> dict:
        code = f"{PRELUDE}\n{textwrap.dedent(script)}\nprint(json.dumps(answer))"
        done = client(code, **how)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def ann(hub: LoopbackHub) -> str:
    """The token of ann, who owns org."""
    hub.add_user("ann", "hf_ann", orgs=("org",))
    return "hf_ann"


@pytest.fixture
def net(hub: LoopbackHub) -> str:
    """A commit of org/net, whose weights lie in the LFS storage."""
    return hub.add_repo("org/net", {"model.safetensors": SMALL, "README.md": b"# net\n"})


def folder(tmp_path: Path, weights: bytes) -> str:
    """A folder to upload, as an expression for a script."""
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    (source / "model.safetensors").write_bytes(weights)
    (source / "README.md").write_text("---\nlicense: mit\n---\n# net\n")
    return repr(str(source))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DOWNLOAD = 'answer = attempt(hf_hub_download, "org/net", "model.safetensors")'

# --------------------------------------------------------------------------------------------------
# The hub itself


def test_a_mistake_in_the_hub_is_raised_when_it_closes(tmp_path: Path) -> None:
    hub = LoopbackHub(tmp_path)
    del hub.repos
    with pytest.raises(ExceptionGroup, match="loopback"), hub, pytest.raises(ConnectionError):
        urllib.request.urlopen(f"{hub.url}/api/models/org/net")


def test_a_large_file_is_elsewhere_by_a_signed_url_with_ranges(hub: LoopbackHub, net: str) -> None:
    there = get(hub, "127.0.0.1", "/org/net/resolve/main/model.safetensors")
    path = there.headers["Location"].removeprefix(hub.cdn_url)
    assert (there.status, there.headers["X-Repo-Commit"]) == (302, net)
    assert there.headers["X-Linked-Etag"] == f'"{sha256(SMALL)}"'
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


# --------------------------------------------------------------------------------------------------
# Publishing


def test_a_repo_is_created_once(hub: LoopbackHub, ask: Ask, ann: str) -> None:
    answer = ask(
        """
        answer = {
            "first": attempt(create_repo, "org/net", private=True),
            "again": attempt(create_repo, "org/net", exist_ok=True),
            "clash": attempt(create_repo, "org/net"),
            "own": attempt(create_repo, "mine"),
            "foreign": attempt(create_repo, "other/net"),
        }
        """,
        token=ann,
    )
    assert answer["first"]["value"] == answer["again"]["value"] == f"{hub.url}/org/net"
    assert answer["clash"]["status"] == 409
    assert answer["own"]["value"] == f"{hub.url}/ann/mine"
    assert answer["foreign"]["status"] == 403
    assert hub.repo("org/net").private
    assert not hub.repo("ann/mine").private
    assert list(hub.files("org/net")) == [".gitattributes"]


@pytest.mark.parametrize(("part_bytes", "puts"), [(None, 1), (10_000_000, 5)])
def test_an_uploaded_folder_comes_back_equal_and_is_not_sent_twice(
    hub: LoopbackHub, ask: Ask, ann: str, tmp_path: Path, *, part_bytes: int | None, puts: int
) -> None:
    hub.multipart_bytes = part_bytes
    hub.add_repo("org/net")
    hub.add_repo("org/twin")
    answer = ask(
        f"""
        source = {folder(tmp_path, BIG)}
        first = upload_folder(repo_id="org/net", folder_path=source)
        again = upload_folder(repo_id="org/net", folder_path=source)
        upload_folder(repo_id="org/twin", folder_path=source)
        create_tag("org/net", tag="v1", revision=first.oid)
        here = snapshot_download("org/net", revision="v1")
        answer = {{"first": first.oid, "again": again.oid, "here": here}}
        """,
        token=ann,
    )
    here = Path(answer["here"])
    assert (here / "model.safetensors").read_bytes() == BIG
    assert here.name == answer["first"] == answer["again"] == hub.repo("org/net").tags["v1"]
    assert hub.files("org/net")["model.safetensors"] == hub.files("org/twin")["model.safetensors"]
    assert hub.entries("org/net")["model.safetensors"].sha256 == sha256(BIG)
    assert hub.entries("org/net")["README.md"].sha256 is None
    assert hub.count("PUT") == puts


def test_the_token_stays_at_the_hub(hub: LoopbackHub, ask: Ask, ann: str, tmp_path: Path) -> None:
    hub.add_repo("org/net", private=True)
    source = folder(tmp_path, SMALL)
    ask(
        f"""
        upload_folder(repo_id="org/net", folder_path={source})
        answer = attempt(hf_hub_download, "org/net", "model.safetensors")
        """,
        token=ann,
    )
    storage = [call for call in hub.requests if call.host == "localhost"]
    assert [call.method for call in storage] == ["PUT", "GET"]
    assert not any(call.authorized for call in storage)


def test_a_stale_parent_commit_is_refused(hub: LoopbackHub, ask: Ask, ann: str, net: str) -> None:
    newer = hub.commit("org/net", {"other.txt": b"someone was faster"})
    answer = ask(
        f"""
        add = CommitOperationAdd("README.md", b"# late")
        answer = attempt(
            HfApi().create_commit, "org/net", [add], commit_message="late", parent_commit="{net}"
        )
        """,
        token=ann,
    )
    assert answer["status"] == 412
    assert hub.head("org/net") == newer


def test_a_lost_answer_hides_a_commit_that_exists(
    hub: LoopbackHub, ask: Ask, ann: str, tmp_path: Path
) -> None:
    before = hub.add_repo("org/net")
    lost = hub.fault("lost_reply", "/commit/main")
    answer = ask(
        f"""
        source = {folder(tmp_path, SMALL)}
        answer = {{
            "first": attempt(upload_folder, repo_id="org/net", folder_path=source),
            "head": model_info("org/net").sha,
            "again": upload_folder(repo_id="org/net", folder_path=source).oid,
        }}
        """,
        token=ann,
    )
    assert lost.hits == 1
    assert answer["first"]["error"]
    assert answer["head"] == answer["again"] == hub.head("org/net") != before
    assert hub.files("org/net")["model.safetensors"] == SMALL
    assert len(hub.repo("org/net").commits) == 2


def test_a_refused_commit_changes_nothing(
    hub: LoopbackHub, ask: Ask, ann: str, tmp_path: Path
) -> None:
    before = hub.add_repo("org/net")
    hub.fault("status", "/commit/main", status=500, times=float("inf"))
    script = 'answer = attempt(upload_folder, repo_id="org/net", folder_path={})'
    answer = ask(script.format(folder(tmp_path, SMALL)), token=ann)
    assert answer["status"] == 500
    assert hub.head("org/net") == before


def test_a_reset_upload_is_sent_again_or_raises(
    hub: LoopbackHub, ask: Ask, ann: str, tmp_path: Path
) -> None:
    before = hub.add_repo("org/net")
    reset = hub.fault("reset_upload", "^/upload/", after=100_000)
    script = 'answer = attempt(upload_folder, repo_id="org/net", folder_path={})'
    answer = ask(script.format(folder(tmp_path, SMALL)), token=ann)
    assert reset.hits == 1
    if answer["error"]:
        assert hub.head("org/net") == before
    else:
        assert hub.files("org/net")["model.safetensors"] == SMALL


def test_bytes_that_are_not_the_announced_ones_are_refused(
    hub: LoopbackHub, ask: Ask, ann: str
) -> None:
    before = hub.add_repo("org/net")
    answer = ask(
        """
        add = CommitOperationAdd("model.safetensors", b"weights")
        add.upload_info.sha256 = bytes(32)
        answer = attempt(HfApi().create_commit, "org/net", [add], commit_message="changed")
        """,
        token=ann,
    )
    assert answer["error"]
    assert hub.head("org/net") == before


def test_a_card_that_the_hub_refuses_stops_the_upload(
    hub: LoopbackHub, ask: Ask, ann: str, tmp_path: Path
) -> None:
    before = hub.add_repo("org/net")
    hub.yaml_errors = ['"license" must be one of the list']
    script = 'answer = attempt(upload_folder, repo_id="org/net", folder_path={})'
    answer = ask(script.format(folder(tmp_path, SMALL)), token=ann)
    assert "ValueError" in answer["error"]
    assert hub.yaml_errors[0] in answer["message"]
    assert hub.head("org/net") == before
    assert hub.count("PUT") == 0


def test_a_repo_becomes_public_and_gated_by_its_settings(
    hub: LoopbackHub, ask: Ask, ann: str
) -> None:
    hub.add_repo("org/net", private=True)
    ask(
        """
        HfApi().update_repo_settings("org/net", private=False)
        HfApi().update_repo_settings("org/net", gated="manual")
        answer = {}
        """,
        token=ann,
    )
    assert not hub.repo("org/net").private
    assert hub.repo("org/net").gated == "manual"


def test_listings_agree_with_the_commit(hub: LoopbackHub, ask: Ask, ann: str, net: str) -> None:
    hub.commit("org/net", {"pictures/pca.png": b"png", "README.md": None})
    hub.tag("org/net", "v1")
    answer = ask(
        """
        api = HfApi()
        deep = api.list_repo_tree("org/net", recursive=True)
        refs = api.list_repo_refs("org/net")
        commits = [commit.commit_id for commit in api.list_repo_commits("org/net")]
        answer = {
            "tree": {item.path: getattr(item, "size", None) for item in deep},
            "top": [item.path for item in api.list_repo_tree("org/net")],
            "weights": api.get_paths_info("org/net", "model.safetensors")[0].lfs.sha256,
            "expanded": api.model_info("org/net", expand=["sha", "gated"]).sha,
            "refs": [ref.target_commit for ref in (*refs.branches, *refs.tags)],
            "commits": commits,
            "before": api.list_repo_files("org/net", revision=commits[1][:10]),
        }
        api.delete_tag("org/net", tag="v1")
        api.delete_file("pictures/pca.png", "org/net")
        answer["after"] = api.list_repo_files("org/net")
        api.delete_repo("org/net")
        """,
        token=ann,
    )
    sizes = {".gitattributes": 428, "model.safetensors": len(SMALL), "pictures/pca.png": 3}
    assert answer["tree"] == {**sizes, "pictures": None}
    assert sorted(answer["top"]) == [".gitattributes", "model.safetensors", "pictures"]
    assert answer["weights"] == sha256(SMALL)
    assert answer["before"] == [".gitattributes", "README.md", "model.safetensors"]
    assert answer["after"] == [".gitattributes", "model.safetensors"]
    assert answer["commits"][1] == net
    assert answer["refs"] == [answer["expanded"]] * 2 == [answer["commits"][0]] * 2
    assert hub.repos == {}


def test_a_read_only_token_publishes_nothing(hub: LoopbackHub, ask: Ask, tmp_path: Path) -> None:
    hub.add_user("eve", "hf_eve", role="read")
    before = hub.add_repo("eve/net")
    script = 'answer = attempt(upload_folder, repo_id="eve/net", folder_path={})'
    answer = ask(script.format(folder(tmp_path, SMALL)), token="hf_eve")
    assert answer["status"] == 403
    assert hub.head("eve/net") == before


# --------------------------------------------------------------------------------------------------
# Who may read

READ_ALL = """
answer = {
    name: {
        "info": attempt(model_info, f"org/{name}"),
        "file": attempt(hf_hub_download, f"org/{name}", "README.md"),
    }
    for name in ("public", "private", "gated", "missing")
}
"""
MISSING, GATED = "RepositoryNotFoundError", "GatedRepoError"


@pytest.mark.parametrize(
    ("token", "private", "gated"),
    [
        pytest.param("hf_ann", None, None, id="owner"),
        pytest.param("hf_guest", MISSING, None, id="granted"),
        pytest.param("hf_stranger", MISSING, GATED, id="stranger"),
        pytest.param("", MISSING, GATED, id="anonymous"),
    ],
)
def test_private_and_gated_files_are_for_those_who_may(
    hub: LoopbackHub, ask: Ask, ann: str, *, token: str, private: str | None, gated: str | None
) -> None:
    add_readable_repos(hub)
    answer = ask(READ_ALL, token=token)
    for name, kind in {"public": None, "private": private, "gated": gated}.items():
        got = answer[name]["file"]
        assert kind in got["error"] if kind else got["error"] is None
    assert MISSING in answer["missing"]["info"]["error"]
    assert MISSING in answer["missing"]["file"]["error"]
    assert answer["gated"]["info"]["error"] is None
    assert (answer["private"]["info"]["error"] is None) == (private is None)


def test_a_wrong_token_is_refused_even_on_public_repos(hub: LoopbackHub, ask: Ask) -> None:
    add_readable_repos(hub)
    answer = ask(READ_ALL, token="hf_wrong")
    assert {outcome["info"]["status"] for outcome in answer.values()} == {401}
    assert all(outcome["file"]["error"] for outcome in answer.values())


def test_a_revoked_token_is_hidden_by_a_warm_cache(hub: LoopbackHub, ask: Ask, ann: str) -> None:
    add_readable_repos(hub)
    before, hub.users = ask(READ_ALL, token=ann), {}
    after = ask(READ_ALL, token=ann)
    assert after["private"]["info"]["status"] == 401
    assert after["private"]["file"]["value"] == before["private"]["file"]["value"]
    assert after["gated"]["file"]["value"] == before["gated"]["file"]["value"]


def add_readable_repos(hub: LoopbackHub) -> None:
    hub.add_user("guest", "hf_guest")
    hub.add_user("stranger", "hf_stranger")
    hub.add_repo("org/public", {"README.md": b"# public\n"})
    hub.add_repo("org/private", {"README.md": b"# private\n"}, private=True)
    hub.add_repo("org/gated", {"README.md": b"# gated\n"}, gated="manual")
    hub.grant("org/gated", "guest")


# --------------------------------------------------------------------------------------------------
# Connections that break


@pytest.mark.parametrize("kind", ["reset", "short", "stall"])
def test_a_broken_download_ends_in_the_right_file_or_an_error(
    hub: LoopbackHub, ask: Ask, net: str, kind: str
) -> None:
    fault = hub.fault(kind, "^/cdn/", seconds=5)
    first = ask(DOWNLOAD, timeout=1)
    assert fault.hits == 1
    assert first["error"] or Path(first["value"]).read_bytes() == SMALL
    second = ask(DOWNLOAD)
    assert Path(second["value"]).read_bytes() == SMALL


def test_a_reset_is_neither_retried_nor_an_oserror(hub: LoopbackHub, ask: Ask, net: str) -> None:
    hub.fault("reset", "^/cdn/")
    answer = ask(DOWNLOAD)
    assert "ReadError" in answer["error"]
    assert not {"OSError", "HfHubHTTPError"} & set(answer["error"])
    assert hub.count("GET", "^/cdn/") == 1


def test_a_stall_is_resumed(hub: LoopbackHub, ask: Ask, net: str) -> None:
    hub.fault("stall", "^/cdn/", seconds=5)
    answer = ask(DOWNLOAD, timeout=1)
    assert Path(answer["value"]).read_bytes() == SMALL
    assert hub.count("GET", "^/cdn/") == 2


def test_too_many_requests_are_repeated_later(hub: LoopbackHub, ask: Ask, net: str) -> None:
    hub.fault("status", "^/cdn/", status=429, headers={"Retry-After": "0"})
    answer = ask(DOWNLOAD)
    assert Path(answer["value"]).read_bytes() == SMALL
    assert hub.count("GET", "^/cdn/") == 2


def test_a_storage_out_of_service_is_not_tried_again(hub: LoopbackHub, ask: Ask, net: str) -> None:
    hub.fault("status", "^/cdn/", status=503)
    answer = ask(DOWNLOAD)
    assert answer["status"] == 503
    assert hub.count("GET", "^/cdn/") == 1


def test_a_hub_out_of_service_delays_or_raises(hub: LoopbackHub, ask: Ask, net: str) -> None:
    hub.fault("status", "/resolve/", method="HEAD", status=503)
    first, second = ask(DOWNLOAD), ask(DOWNLOAD)
    assert first["value"] or "LocalEntryNotFoundError" in first["error"]
    assert Path(second["value"]).read_bytes() == SMALL


def test_a_failed_download_prints_its_signed_url(hub: LoopbackHub, ask: Ask, net: str) -> None:
    hub.fault("status", "^/cdn/", status=403, body="<Error>expired</Error>")
    assert SIGNATURE in ask(DOWNLOAD)["message"]


# --------------------------------------------------------------------------------------------------
# Servers that lie: why pcd_hub checks the bytes itself


def test_one_flipped_byte_is_returned_as_success(hub: LoopbackHub, ask: Ask, net: str) -> None:
    flip = hub.fault("flip", "^/cdn/")
    answer = ask(DOWNLOAD)
    got = Path(answer["value"])
    assert flip.hits == 1
    assert len(got.read_bytes()) == len(SMALL)
    assert got.read_bytes() != SMALL
    assert got.resolve().name == sha256(SMALL) != sha256(got.read_bytes())


def test_a_wrong_etag_is_believed(hub: LoopbackHub, ask: Ask, net: str) -> None:
    hub.fault("etag", "/resolve/", method="HEAD", value=f'"{"0" * 64}"')
    answer = ask(DOWNLOAD)
    assert Path(answer["value"]).resolve().name == "0" * 64


def test_a_hostile_etag_writes_outside_the_cache(
    hub: LoopbackHub, ask: Ask, net: str, tmp_path: Path
) -> None:
    hub.fault("etag", "/resolve/", value='"../../../outside"', times=float("inf"))
    home = tmp_path / "home"
    ask(DOWNLOAD, home=home)
    assert (home / "outside").read_bytes() == SMALL


def test_a_hostile_etag_fails_closed_in_a_local_dir(
    hub: LoopbackHub, ask: Ask, net: str, tmp_path: Path
) -> None:
    hub.fault("etag", "/resolve/", value='"../../../outside"', times=float("inf"))
    local = tmp_path / "a" / "b" / "c" / "local"
    answer = ask(DOWNLOAD.replace(")", f', local_dir="{local}")'))
    assert "FileNotFoundError" in answer["error"]
    assert not list(tmp_path.rglob("*outside*"))


@pytest.mark.parametrize("name", ["../outside.txt", "{}/outside.txt", "a/../../outside.txt"])
def test_a_hostile_file_name_stays_inside(
    hub: LoopbackHub, ask: Ask, tmp_path: Path, name: str
) -> None:
    hub.add_repo("org/net", {name.format(tmp_path): b"hostile", "README.md": b"# net\n"})
    local = tmp_path / "here" / "local"
    answer = ask(f'answer = attempt(snapshot_download, "org/net", local_dir="{local}")')
    assert answer["error"] or answer["value"] == str(local)
    assert not [path for path in tmp_path.rglob("*outside*") if local not in path.parents]


@pytest.mark.parametrize("kind", ["size", "commit_header"])
def test_a_wrong_size_or_a_missing_commit_is_an_error(
    hub: LoopbackHub, ask: Ask, net: str, kind: str
) -> None:
    value = {"size": str(len(SMALL) + 1), "commit_header": None}[kind]
    hub.fault(kind, "/resolve/", value=value, times=float("inf"))
    assert ask(DOWNLOAD)["error"]


# --------------------------------------------------------------------------------------------------
# Offline


def test_offline_the_cache_answers_without_a_request(
    hub: LoopbackHub, ask: Ask, net: str, tmp_path: Path
) -> None:
    online = ask('answer = attempt(snapshot_download, "org/net")')
    hub.requests.clear()
    script = 'answer = attempt(snapshot_download, "org/net")'
    offline = ask(script, env={"HF_HUB_OFFLINE": "1"})
    empty = ask(script, env={"HF_HUB_OFFLINE": "1"}, home=tmp_path / "empty")
    assert offline["value"] == online["value"]
    assert "LocalEntryNotFoundError" in empty["error"]
    assert hub.requests == []


# --------------------------------------------------------------------------------------------------
# Xet, the way that real users take


def xet_upload(source: str) -> str:
    return f"""
done = upload_folder(repo_id="org/net", folder_path={source})
answer = {{"oid": done.oid, "by_lfs": __version__.startswith("1.0.")}}
"""


@pytest.fixture
def on_xet(hub: LoopbackHub, ask: Ask, ann: str, tmp_path: Path) -> str:
    """The commit of an upload by Xet."""
    hub.xet = True
    hub.add_repo("org/net", private=True)
    answer = ask(xet_upload(folder(tmp_path, SMALL)), token=ann, xet=True)
    if answer["by_lfs"]:
        pytest.skip("huggingface_hub 1.0 lets the LFS batch decide, and that says basic")
    return answer["oid"]


def test_xet_brings_back_what_it_took(hub: LoopbackHub, ask: Ask, ann: str, on_xet: str) -> None:
    assert hub.head("org/net") == on_xet
    assert hub.entries("org/net")["model.safetensors"].sha256 == sha256(SMALL)
    answer = ask(DOWNLOAD, token=ann, xet=True)
    assert Path(answer["value"]).read_bytes() == SMALL
    assert hub.count(None, "xet-write-token") >= 1
    assert hub.count(None, "xet-read-token") >= 1
    assert not [call for call in hub.requests if call.host == "localhost"]


def test_one_flipped_byte_passes_xet_too(
    hub: LoopbackHub, ask: Ask, ann: str, on_xet: str, tmp_path: Path
) -> None:
    for xorb in hub.cas.rglob("xorbs/default.*[0-9a-f]"):
        data = bytearray(xorb.read_bytes())
        data[len(SMALL) // 2] ^= 1
        xorb.chmod(0o600)
        xorb.write_bytes(data)
    answer = ask(DOWNLOAD, token=ann, xet=True, home=tmp_path / "another")
    got = Path(answer["value"]).read_bytes()
    assert len(got) == len(SMALL)
    assert got != SMALL


def test_without_xet_at_the_hub_an_upload_by_xet_fails(
    hub: LoopbackHub, ask: Ask, ann: str, tmp_path: Path
) -> None:
    before = hub.add_repo("org/net")
    source = folder(tmp_path, SMALL)
    script = f'answer = attempt(upload_folder, repo_id="org/net", folder_path={source})'
    answer = ask(
        script + '\nanswer["by_lfs"] = __version__.startswith("1.0.")', token=ann, xet=True
    )
    assert answer["by_lfs"] == (answer["error"] is None)
    assert answer["by_lfs"] or (
        "ConnectionError" in answer["error"] and hub.head("org/net") == before
    )
