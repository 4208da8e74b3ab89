"""pcd_hub.fetch and create_model against a loopback Hub, through the real client."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save

import pcd_hub
from pcd_hub.errors import HubError, HubUnreachableError, PCDHubError, WeightError
from pcd_hub.weights import create, store
from pcd_hub.weights.hub import client as hub_module
from pcd_hub.weights.hub import fetch, published
from pcd_hub.weights.layout import MANIFEST_FILE
from pcd_hub.weights.manifest import sha256
from tests.cli.outcome import outcome
from tests.hub.surroundings import go_offline, point_client_at, settle
from tests.weights.making import exported, files_of, filled, flip, rewritten, same_tensors

REPO = "org/test_resnet.pcd"


@pytest.fixture(autouse=True)
def client(hub, monkeypatch):
    point_client_at(hub, monkeypatch)
    monkeypatch.delenv("PCD_HUB_ORG", raising=False)
    monkeypatch.setattr(hub_module, "_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 2)
    yield
    hub.faults.clear()
    settle()


@pytest.fixture
def model():
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=0)


def pin_file(revision):
    """Where the pin of a revision lies."""
    return store.home() / "pins" / f"{REPO}@{revision}"


@pytest.fixture
def commit(hub, model, tmp_path):
    return hub.add_repo(REPO, files_of(exported(tmp_path / "export", model=model)))


def test_a_branch_becomes_a_commit_and_a_line_that_pins_it(hub, commit, model):
    fetched = pcd_hub.fetch(REPO)
    assert fetched.commit == commit
    manifest = hub.files(REPO)["pcd_manifest.json"]
    assert fetched.lock_line == f"{REPO}@{commit} {sha256(fetched.folder / 'pcd_manifest.json')}"
    assert (fetched.folder / "pcd_manifest.json").read_bytes() == manifest
    assert sorted(path.name for path in fetched.folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "pca.png",
        "pcd_manifest.json",
    ]
    downloads = [call.path for call in hub.requests if "/resolve/" in call.path]
    assert downloads
    assert all(f"/resolve/{commit}/" in path for path in downloads), "only that commit is used"
    for revision in ("main", commit):
        assert pin_file(revision).read_text() == fetched.lock_line + "\n"
    assert not drafts()
    assert same_tensors(model, pcd_hub.create_model(REPO))


def drafts():
    """Unfinished downloads and pin files."""
    left = [*Path(constants.HF_HUB_CACHE).rglob(".pcd-hub-*"), *store.home().rglob(".*")]
    return [path for path in left if path.is_file() or any(path.iterdir())]


def test_the_files_are_in_the_cache_of_every_other_program(hub, commit, model):
    """Plain timm and the client find them, and ``hf cache`` lists them; and the other way round."""
    import huggingface_hub

    fetched = pcd_hub.fetch(REPO)
    before = hub.count("GET", "/resolve|/cdn/")
    path = huggingface_hub.hf_hub_download(REPO, "model.safetensors")
    assert Path(path) == fetched.folder / "model.safetensors"
    assert same_tensors(model, timm.create_model(f"hf-hub:{REPO}", pretrained=True))
    assert hub.count("GET", "/resolve|/cdn/") == before
    (repo,) = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash) == (REPO, commit)
    assert revision.size_on_disk == sum(p.stat().st_size for p in fetched.folder.iterdir())
    huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(commit).execute()
    assert pcd_hub.list_weights() == []
    huggingface_hub.snapshot_download(REPO)
    before = hub.count("GET", "^/cdn/")
    assert pcd_hub.fetch(REPO) == fetched
    assert hub.count("GET", "^/cdn/") == before, "the weights are there already"


def test_an_older_commit_stays_what_it_was(hub, commit, model, tmp_path):
    newer = hub.commit(REPO, files_of(filled(2.0, tmp_path / "two")))
    assert pcd_hub.fetch(REPO).commit == newer
    assert same_tensors(model, pcd_hub.create_model(f"{REPO}@{commit}"))
    hub.tag(REPO, "v1", commit)
    assert pcd_hub.fetch(f"{REPO}@v1").commit == commit


def test_a_moved_branch_is_followed(hub, commit, tmp_path):
    pcd_hub.fetch(REPO)
    newer = hub.commit(REPO, files_of(filled(2.0, tmp_path / "two")))
    assert pcd_hub.fetch(REPO).commit == newer


def test_a_commit_that_is_here_needs_no_request(hub, commit, model):
    pcd_hub.fetch(REPO)
    before = len(hub.requests)
    assert same_tensors(model, pcd_hub.create_model(f"{REPO}@{commit}"))
    assert len(hub.requests) == before


def test_offline_is_zero_requests_and_still_verified(hub, commit, model, monkeypatch):
    folder = pcd_hub.fetch(REPO).folder
    go_offline(monkeypatch)
    before = len(hub.requests)
    assert same_tensors(model, pcd_hub.create_model(REPO))
    flip(folder / "model.safetensors")
    with pytest.raises(WeightError, match="sha256"):
        pcd_hub.create_model(REPO)
    with pytest.raises(WeightError, match="org/other was not fetched"):
        pcd_hub.create_model("org/other")
    assert len(hub.requests) == before


def rewrite_whole(folder, tmp_path):
    """Files and manifest agree, but the pin file remembers another manifest."""
    for name, content in files_of(filled(2.0, tmp_path / "two")).items():
        (folder / name).write_bytes(content)


def test_offline_a_folder_that_was_rewritten_whole_is_not_what_was_fetched(
    commit, tmp_path, monkeypatch
):
    rewrite_whole(pcd_hub.fetch(REPO).folder, tmp_path)
    go_offline(monkeypatch)
    for reference in (REPO, f"{REPO}@{commit}"):
        for read in (pcd_hub.create_model, pcd_hub.where, pcd_hub.fetch):
            with pytest.raises(WeightError, match="which was pinned; it is not the weight you mea"):
                read(reference)
    assert pcd_hub.list_weights()[0].origin == "fetched"


def test_a_folder_that_was_rewritten_whole_is_downloaded_again(commit, model, tmp_path):
    rewrite_whole(pcd_hub.fetch(REPO).folder, tmp_path)
    assert same_tensors(model, pcd_hub.create_model(f"{REPO}@{commit}"))


def test_a_fetch_that_was_killed_is_finished_by_the_next(commit, model):
    """At its worst moments: files but no manifest, a manifest but no pin, half a pin, a draft."""
    folder = pcd_hub.fetch(REPO).folder
    draft = folder.parents[1] / ".pcd-hub-killed"
    draft.mkdir()
    for pin in (pin_file("main"), pin_file(commit)):
        pin.unlink()
        assert pcd_hub.fetch(REPO).folder == folder
        assert pin.read_text().startswith(f"{REPO}@{commit} ")
    pin_file(commit).unlink()
    (folder / "pcd_manifest.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    assert same_tensors(model, pcd_hub.create_model(REPO))
    for damaged in (b"", b"\xff"):
        pin_file(commit).write_bytes(damaged)
        with pytest.raises(WeightError, match=f"{commit} is damaged; delete it"):
            pcd_hub.fetch(REPO)
    pin_file(commit).unlink()
    os.utime(draft, (1, 1))
    shutil.rmtree(folder)
    assert pcd_hub.fetch(REPO).folder == folder
    assert not draft.exists()


def test_what_the_release_before_fetched_is_left_alone(hub, commit):
    old = store.home() / ".hub" / REPO / commit
    old.mkdir(parents=True)
    (old / "pcd_manifest.json").write_text("{")
    assert pcd_hub.list_weights() == []
    assert pcd_hub.fetch(REPO).folder != old
    assert (old / "pcd_manifest.json").read_text() == "{"


# What is here, but not as it was fetched.


@pytest.mark.parametrize("read", [pcd_hub.fetch, pcd_hub.create_model])
def test_a_pinned_weight_whose_folder_is_gone_is_fetched_again(commit, read):
    first = pcd_hub.fetch(REPO)
    shutil.rmtree(first.folder)
    read(f"{REPO}@{commit}")
    assert pcd_hub.where(f"{REPO}@{commit}") == first.folder
    assert pcd_hub.fetch(f"{REPO}@{commit}") == first


DAMAGED = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
"""What may become of a file."""


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("file", ["pcd_manifest.json", "model.safetensors"])
@pytest.mark.parametrize("read", [pcd_hub.fetch, pcd_hub.create_model])
def test_a_damaged_file_is_downloaded_again(hub, commit, model, how, file, read, caplog):
    """Detected at load, and offline an error that says what to do."""
    first = pcd_hub.fetch(REPO)
    DAMAGED[how](first.folder / file)
    name = f"{REPO}@{commit}" if how in {"missing", "flipped"} else REPO
    with pytest.MonkeyPatch.context() as patch:
        go_offline(patch)
        before = len(hub.requests)
        with pytest.raises(WeightError, match=f"run `pcd-hub fetch {REPO}@{commit}` with network"):
            read(name)
        assert len(hub.requests) == before
    read(name)
    assert "is damaged: downloading it again" in caplog.text
    before = len(hub.requests)
    assert pcd_hub.fetch(f"{REPO}@{commit}") == first
    assert same_tensors(model, pcd_hub.create_model(f"{REPO}@{commit}"))
    assert len(hub.requests) == before
    assert not drafts()


@pytest.mark.parametrize("is_gone", [True, False])
def test_what_comes_back_with_another_manifest_than_was_pinned_is_refused(commit, is_gone):
    """A commit never changes, so a Hub that sends another one must not be believed."""
    folder = pcd_hub.fetch(REPO).folder
    pin = pin_file(commit)
    pin.write_text(f"{REPO}@{commit} {'0' * 64}\n")
    if is_gone:
        shutil.rmtree(folder)
    for name in (f"{REPO}@{commit}", REPO):
        for read in (pcd_hub.fetch, pcd_hub.create_model):
            with pytest.raises(WeightError, match=f"expected 0{{12}}, .* pinned by .*@{commit}; "):
                read(name)
    assert folder.exists() != is_gone
    assert pin.read_text().endswith("0" * 64 + "\n")


def test_a_dead_hub_and_a_folder_that_is_gone_is_an_error(hub, commit, caplog):
    shutil.rmtree(pcd_hub.fetch(REPO).folder)
    hub.fault("status", "/api/models/", status=503, times=99)
    for name in (REPO, f"{REPO}@{commit}"):
        with pytest.raises(HubUnreachableError, match="answered 503"):
            pcd_hub.fetch(name)
        assert "pcd_manifest.json' is missing" in caplog.text
        caplog.clear()


def test_a_damaged_folder_without_a_pin_is_never_pinned(commit, model):
    """Another program has downloaded it, or ours was killed; then it rotted."""
    first = pcd_hub.fetch(REPO)
    for revision in ("main", commit):
        pin_file(revision).unlink()
    flip(first.folder / "pcd_manifest.json")
    flip(first.folder / "model.safetensors")
    assert pcd_hub.where(REPO) is None
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert pcd_hub.fetch(REPO) == first


@pytest.mark.parametrize("how", [*DAMAGED, "no text"])
def test_a_branchs_pin_file_is_replaced_whatever_it_has_become(commit, how):
    first = pcd_hub.fetch(REPO)
    pin = pin_file("main")
    {**DAMAGED, "no text": lambda path: path.write_bytes(b"\xff")}[how](pin)
    if how == "a folder":
        with pytest.raises(WeightError, match="cannot write .*@main"):
            pcd_hub.fetch(REPO)
    else:
        assert pcd_hub.fetch(REPO) == first
        assert pin.read_text() == first.lock_line + "\n"
    assert not list(pin.parent.glob(".*"))


@pytest.mark.parametrize("how", ["a pipe", "endless", "a folder"])
def test_offline_a_pin_file_that_is_no_plain_file_pins_nothing(commit, how, monkeypatch):
    pcd_hub.fetch(REPO)
    DAMAGED[how](pin_file("main"))
    go_offline(monkeypatch)
    with pytest.raises(WeightError, match="was not fetched"):
        pcd_hub.fetch(REPO)


def test_verify_checks_the_pin_with_and_without_a_name(commit, capsys):
    fetched = pcd_hub.fetch(REPO)
    manifest = fetched.folder / MANIFEST_FILE
    changed = manifest.read_text().replace("{", "{ ", 1)
    manifest.unlink()  # a link to a blob
    manifest.write_text(changed)
    for names in ([], [REPO]):
        done = outcome(capsys, "verify", *names)
        assert done.code == 1
        assert "DAMAGED" in done.out


@pytest.mark.parametrize(
    "line",
    [
        "org/other.pcd@{commit} {sha}",
        "../../x@{commit} {sha}",
        "{repo}@../../../x {sha}",
        "{repo}@{commit} {sha}\n{repo}@{commit} {sha}",
        "{repo}@{upper} {sha}",
        "{repo}@{commit} " + "0" * 63,
    ],
)
def test_a_hostile_pin_file_leads_nowhere(hub, commit, line, monkeypatch):
    """Offline it is an error; a branch's is replaced by what the Hub says."""
    first = pcd_hub.fetch(REPO)
    facts = {"commit": commit, "upper": commit.upper(), "sha": first.manifest_sha256, "repo": REPO}
    pin_file("main").write_text(line.format(**facts))
    with pytest.MonkeyPatch.context() as patch:
        go_offline(patch)
        for read in (pcd_hub.fetch, pcd_hub.create_model, pcd_hub.where):
            with pytest.raises(WeightError, match="@main is damaged; delete it"):
                read(REPO)
    assert pcd_hub.fetch(REPO) == first
    pin_file(commit).write_text(line.format(**facts))
    for read in (pcd_hub.fetch, pcd_hub.create_model, pcd_hub.where):
        with pytest.raises(WeightError, match=f"@{commit} is damaged; delete it"):
            read(f"{REPO}@{commit}")
    assert pcd_hub.list_weights() == []


@pytest.mark.parametrize("is_pin", [True, False])
def test_a_huge_pin_file_or_manifest_is_not_read_whole(commit, is_pin, monkeypatch):
    folder = pcd_hub.fetch(REPO).folder
    os.truncate(pin_file("main") if is_pin else folder / "pcd_manifest.json", 200 * 1024**2)
    go_offline(monkeypatch)
    seen = []
    monkeypatch.setattr("hashlib.file_digest", lambda *_: seen.append("read to its end"))
    tracemalloc.start()
    with pytest.raises(WeightError, match="is damaged; delete it|expected at most 1000000"):
        pcd_hub.fetch(REPO)
    assert tracemalloc.get_traced_memory()[1] < 20 * 1024**2
    tracemalloc.stop()
    assert not seen


# Links in the cache, which the client makes itself, and others may.


def test_links_to_blobs_are_followed_and_replaced_but_never_written_through(commit, model):
    """As on every system with symbolic links, where other programs have downloaded the weight."""
    import huggingface_hub

    huggingface_hub.snapshot_download(REPO)
    folder = Path(constants.HF_HUB_CACHE) / "models--org--test_resnet.pcd" / "snapshots" / commit
    weights = folder / "model.safetensors"
    assert weights.is_symlink()
    blob = weights.resolve()
    assert pcd_hub.fetch(REPO).folder == folder
    assert weights.is_symlink()
    flip(blob)
    damaged = blob.read_bytes()
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert not weights.is_symlink()
    assert blob.read_bytes() == damaged


def test_a_link_in_the_cache_to_the_users_own_file_leaves_that_file_alone(commit, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    folder = pcd_hub.fetch(REPO).folder
    for name in ("README.md", "pcd_manifest.json", "model.safetensors"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
    pcd_hub.fetch(REPO)
    assert secret.read_text() == "mine"
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("level", ["the commit", "the snapshots", "the repository"])
def test_a_folder_of_the_cache_that_leads_elsewhere_is_not_written_to(commit, tmp_path, level):
    folder = pcd_hub.fetch(REPO).folder
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = {"the commit": folder, "the snapshots": folder.parent}.get(level, folder.parents[1])
    shutil.rmtree(link)
    link.symlink_to(elsewhere)
    with pytest.raises(WeightError, match="is a link to another folder; remove it"):
        pcd_hub.fetch(REPO)
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


def test_a_file_that_is_swapped_while_it_is_read_is_not_parsed(commit, model, monkeypatch):
    """The bytes that are parsed are the bytes that were hashed."""
    folder = pcd_hub.fetch(REPO).folder
    other = save({key: value + 1 for key, value in model.state_dict().items()})
    read = Path.read_bytes

    def swapped(path):
        content = read(path)
        path.write_bytes(other)
        return content

    monkeypatch.setattr(Path, "read_bytes", swapped)
    go_offline(monkeypatch)
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert (folder / "model.safetensors").stat().st_size == len(other)
    with pytest.raises(WeightError, match="sha256|bytes"):
        pcd_hub.create_model(REPO)


def test_a_cache_that_cannot_be_written_is_named(commit, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(file))
    with pytest.raises(WeightError, match="cannot write to .*HF_HUB_CACHE to another folder"):
        pcd_hub.fetch(REPO)


def test_a_cache_that_others_own_can_be_read(hub, commit, model, monkeypatch):
    """Neither the cache nor an unchanged pin file is written."""
    pcd_hub.fetch(REPO)
    assert pin_file("main").stat().st_mode & 0o777 == 0o644

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr("tempfile.mkstemp", denied)
    monkeypatch.setattr("tempfile.mkdtemp", denied)
    assert same_tensors(model, pcd_hub.create_model(REPO))


def test_a_store_that_cannot_be_written_is_named(commit, monkeypatch):
    store.home().write_text("a file")
    with pytest.raises(WeightError, match="cannot write to .*PCD_HUB_HOME"):
        pcd_hub.fetch(REPO)


def test_a_dead_hub_falls_back_to_what_was_fetched_and_says_so(hub, commit, model, caplog):
    pcd_hub.fetch(REPO)
    hub.fault("status", "/api/models/", status=503, times=99)
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert f"using {REPO}@{commit}, which was fetched before" in caplog.text
    with pytest.raises(HubUnreachableError, match="answered 503"):
        pcd_hub.create_model("org/other")
    hub.faults.clear()
    hub.fault("status", "/api/models/", status=429, times=99)
    with pytest.raises(HubUnreachableError, match="answered 429"):
        pcd_hub.create_model("org/other")
    hub.faults.clear()
    once = hub.fault("status", "/api/models/", status=503)
    assert pcd_hub.fetch(REPO).commit == commit, "one is overcome"
    assert once.hits == 1


def test_a_refused_token_is_no_success_from_the_cache(hub, commit, monkeypatch):
    pcd_hub.fetch(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(HubError, match="the Hub rejects the token"):
        pcd_hub.fetch(REPO)


def test_private_and_gated_repositories_need_the_right_token(hub, model, tmp_path, monkeypatch):
    files = files_of(exported(tmp_path / "export", model=model))
    hub.add_user("ann", token="hf_ann", orgs=("org",))
    hub.add_user("bob", token="hf_bob")
    hub.add_repo("org/private.pcd", files, private=True)
    hub.add_repo("org/gated.pcd", files, gated="manual")
    for token, repo, message in [
        (None, "org/private.pcd", r"not visible to anonymous users \(no token is set\)"),
        ("hf_bob", "org/private.pcd", "private and not visible to your token"),
        ("hf_bob", "org/gated.pcd", "is gated: request access"),
        (None, "org/gated.pcd", "is gated: request access"),
        ("hf_ann", "org/missing.pcd", "does not exist"),
    ]:
        point_client_at(hub, monkeypatch, token=token)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(HubError, match=message):
            pcd_hub.fetch(repo)
    point_client_at(hub, monkeypatch, token="hf_ann")
    assert same_tensors(model, pcd_hub.create_model("org/private.pcd"))
    hub.grant("org/gated.pcd", "bob")
    point_client_at(hub, monkeypatch, token="hf_bob")
    assert same_tensors(model, pcd_hub.create_model("org/gated.pcd"))


def test_an_unknown_revision_is_named(hub, commit):
    with pytest.raises(HubError, match="no such revision"):
        pcd_hub.fetch(f"{REPO}@v9")
    with pytest.raises(HubError, match="no such revision"):
        pcd_hub.fetch(f"{REPO}@{'0' * 40}")


@pytest.mark.parametrize(
    "reference",
    ["a/../b", "a/b@../c", "/a/b", "a/b/c", "a\\b/c", "a/b@", "-a/b", "a/b.git", "a/b\n", "~/x"],
)
def test_odd_references_are_refused_before_any_request(hub, reference):
    with pytest.raises(WeightError, match="not a Hub repository|not a revision"):
        pcd_hub.fetch(reference)
    assert not hub.requests


# Faults on the wire. The plain client returns a flipped byte as success.


@pytest.mark.parametrize(
    ("kind", "match", "options"),
    [
        ("flip", "^/cdn/", {}),
        ("reset", "^/cdn/", {}),
        ("short", "^/cdn/", {}),
        ("status", "^/cdn/", {"status": 503}),
        ("status", "/resolve/", {"status": 503}),
        ("status", "/resolve/", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("flip", "resolve-cache.*pcd_manifest.json", {"method": "GET"}),
    ],
)
def test_one_fault_on_the_way_is_overcome(hub, commit, model, kind, match, options):
    fault = hub.fault(kind, match, **options)
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert fault.hits == 1


@pytest.mark.parametrize(
    ("kind", "match", "options", "error", "message"),
    [
        ("flip", "^/cdn/", {}, WeightError, "model.safetensors has sha256 .* arrived damaged"),
        ("reset", "^/cdn/", {}, HubUnreachableError, "cannot read model.safetensors of"),
        ("status", "^/cdn/", {"status": 503}, HubUnreachableError, "answered 503|does not answer"),
        ("status", "/resolve/", {"status": 403}, HubError, "may not"),
    ],
)
def test_a_lasting_fault_is_an_error_and_leaves_nothing(
    hub, commit, kind, match, options, error, message
):
    hub.fault(kind, match, times=99, **options)
    with pytest.raises(error, match=message):
        pcd_hub.fetch(REPO)
    assert not [path for path in store.home().rglob("*") if path.is_file()], "nothing is pinned"
    assert not drafts()
    for path in Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/*"):
        assert path.read_bytes() == hub.files(REPO)[path.name], "only verified files are kept"
    hub.faults.clear()
    assert pcd_hub.fetch(REPO).commit == commit


@pytest.mark.parametrize("match", ["/resolve/", "^/cdn/"])
def test_a_download_that_falls_silent_ends(hub, commit, monkeypatch, match):
    monkeypatch.setattr(hub_module, "_SILENCE_SECONDS", 1.5)
    monkeypatch.setattr(hub_module, "_PATIENCE_SECONDS", 1.0)
    hub.fault("stall", match, after=0, seconds=5, times=99)
    start = time.monotonic()
    with pytest.raises(HubUnreachableError, match="no progress for 2 s|does not answer"):
        pcd_hub.fetch(REPO)
    assert time.monotonic() - start < 15


def test_a_commit_that_was_asked_for_is_the_one_that_comes(hub, commit):
    """A branch may be named like a commit; an endpoint may answer anything."""
    hub.repo(REPO).branches["0" * 40] = commit
    with pytest.raises(HubError, match=f"answered commit '{commit}', expected 000"):
        pcd_hub.fetch(f"{REPO}@{'0' * 40}")
    body = json.dumps({"id": REPO, "sha": "../..", "siblings": []})
    headers = {"Content-Type": "application/json"}
    hub.fault("status", "/api/models/", status=200, body=body, headers=headers)
    with pytest.raises(HubError, match=r"answered commit '\.\./\.\.', expected 40 lower-case"):
        pcd_hub.fetch(REPO)


def test_what_others_downloaded_is_used_and_not_believed(hub, commit, model):
    """It may have rotted, or hold what another program put there."""
    import huggingface_hub

    path = Path(huggingface_hub.hf_hub_download(REPO, "model.safetensors"))
    flip(path.resolve())
    assert same_tensors(model, pcd_hub.create_model(REPO))
    shutil.rmtree(store.home())
    before = hub.count("GET", "^/cdn/.*model.safetensors")
    assert before
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert hub.count("GET", "^/cdn/.*model.safetensors") == before, "whole, it is not sent again"


def test_an_endpoint_cannot_name_a_folder_here_as_its_xet_storage(hub, monkeypatch, tmp_path):
    hub.xet = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    export = exported(tmp_path / "export")
    hub.add_repo(REPO, files_of(export))
    before = len(hub.requests)
    pcd_hub.fetch(REPO)
    assert not [call for call in hub.requests[before:] if "xet-read-token" in call.path]


def test_a_full_disk_is_not_called_a_silent_hub(hub, commit, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", full)
    with pytest.raises(HubError, match="error on this machine: .*No space left") as caught:
        pcd_hub.fetch(REPO)
    assert not isinstance(caught.value, HubUnreachableError)


@pytest.mark.parametrize("etag", ['"../../../outside"', '"/tmp/pcd-hub-outside"', '"con"', '""'])
def test_a_hostile_etag_writes_nothing_outside(hub, commit, tmp_path, etag):
    hub.fault("etag", "/resolve/", value=etag, times=99)

    def outside():
        own = {store.home(), Path(constants.HF_HUB_CACHE), tmp_path / "hub"}
        return {p for p in tmp_path.rglob("*") if own.isdisjoint({p, *p.parents})}

    before = outside()
    with contextlib.suppress(pcd_hub.PCDHubError):
        pcd_hub.fetch(REPO)
    assert outside() == before
    for path in Path(constants.HF_HUB_CACHE).rglob("*"):
        assert path.is_dir() or path.parent.name == commit, "in the cache are verified files alone"
    assert not Path("/tmp/pcd-hub-outside").exists()


@pytest.mark.parametrize(
    "name", ["../evil", "/abs", "a\\b", ".git/hooks/post-checkout", "Config.json", "a\nb", "a//b"]
)
def test_hostile_file_names_are_refused_before_any_download(hub, commit, name):
    hub.commit(REPO, {name: b"x"})
    with pytest.raises(WeightError, match="is not a file name of a repository|in case only"):
        pcd_hub.fetch(REPO)
    assert not [call for call in hub.requests if "/resolve/" in call.path]


def test_a_file_that_is_missing_is_an_error(hub, commit):
    hub.commit(REPO, {"pca.png": None})
    with pytest.raises(WeightError, match="'pca.png' is in the manifest but not in the repository"):
        pcd_hub.fetch(REPO)
    hub.commit(REPO, {"pcd_manifest.json": None})
    with pytest.raises(WeightError, match="has no pcd_manifest.json.*unverified"):
        pcd_hub.fetch(REPO)


@pytest.mark.parametrize("name", ["extra.png", "model.bin", "x/y.png", "onnx/model.onnx", ".env"])
def test_files_that_the_manifest_does_not_name_are_never_asked_for(
    hub, commit, name, model, caplog
):
    caplog.set_level("INFO")
    hub.commit(REPO, {name: b"x"})
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert f"not in the manifest and not fetched: {name}" in caplog.text
    assert not [call for call in hub.requests if "/resolve/" in call.path and name in call.path]
    assert not (pcd_hub.fetch(REPO).folder / name).exists()


def hostile_weights(model):
    nan = {key: value.clone() for key, value in model.state_dict().items()}
    nan["conv1.0.weight"].fill_(float("nan"))
    missing = dict(model.state_dict())
    del missing["conv1.0.weight"]
    return {
        "pickle": (b"\x80\x04cos\nsystem\n", "header"),
        "nan": (save(nan), "conv1.0.weight"),
        "missing": (save(missing), "conv1.0.weight"),
        "another": (save(timm.create_model("test_vit", num_classes=0).state_dict()), "test_resnet"),
    }


@pytest.mark.parametrize("case", ["pickle", "nan", "missing", "another"])
def test_hostile_weights_with_a_true_manifest_are_refused(hub, model, tmp_path, case):
    content, message = hostile_weights(model)[case]
    folder = exported(tmp_path / "export", model=model)
    hub.add_repo(REPO, files_of(rewritten(folder, {"model.safetensors": content})))
    with pytest.raises(WeightError, match=message):
        pcd_hub.fetch(REPO)
    with pytest.raises(WeightError, match=message):
        pcd_hub.create_model(REPO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args": {"depth": 3000}}, "depth"),
        ({"architecture": "no_such_arch"}, "no_such_arch"),
        ({"hf_hub_filename": "evil.bin"}, "hf_hub_filename"),
        ({"pretrained_cfg": {"url": "http://x"}}, "url|pretrained_cfg"),
    ],
)
def test_a_hostile_config_is_refused_quickly(hub, model, tmp_path, change, message):
    folder = exported(tmp_path / "export", model=model)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    content = json.dumps(config).encode()
    hub.add_repo(REPO, files_of(rewritten(folder, {"config.json": content})))
    start = time.monotonic()
    with pytest.raises(WeightError, match=message):
        pcd_hub.create_model(REPO)
    assert time.monotonic() - start < 10


def test_a_repository_larger_than_any_weight_is_refused(hub, commit, monkeypatch):
    monkeypatch.setattr(hub_module, "_BYTES_AT_MOST", 1000)
    with pytest.raises(HubError, match="expected at most 1000"):
        pcd_hub.fetch(REPO)


def answer_sizes(hub, **sizes):
    """The Hub tells the truth of its repository, but for the sizes of these files."""
    files = hub.files(REPO)
    siblings = [
        {"rfilename": name, "size": sizes.get(name.partition(".")[0], len(raw)), "blobId": "0" * 40}
        for name, raw in files.items()
    ]
    body = json.dumps({"id": REPO, "sha": hub.head(REPO), "siblings": siblings})
    headers = {"Content-Type": "application/json"}
    hub.fault("status", "/api/models/", status=200, body=body, headers=headers, times=99)


def test_sizes_below_zero_hide_nothing_from_the_bound(hub, commit):
    answer_sizes(hub, model=100 * 1024**3, pca=-99 * 1024**3)
    with pytest.raises(HubError, match=r"'pca.png' of -106300440576 bytes.*is it a Hub\?"):
        pcd_hub.fetch(REPO)
    assert not [call for call in hub.requests if "/resolve/" in call.path]


def test_a_manifest_that_is_listed_as_too_large_is_not_downloaded(hub, commit):
    answer_sizes(hub, pcd_manifest=1_000_001)
    with pytest.raises(
        WeightError, match="pcd_manifest.json has 1000001 bytes, expected at most 1000000"
    ):
        pcd_hub.fetch(REPO)
    assert not [call for call in hub.requests if "/resolve/" in call.path]


def test_downloads_are_bounded_by_the_manifest_not_by_what_the_hub_lists(hub, commit, monkeypatch):
    sizes = {}
    download = hub_module.Hub.download

    def noted(self, repo, commit, path, folder, *, size):
        sizes[path] = size
        return download(self, repo, commit, path, folder, size=size)

    monkeypatch.setattr(hub_module.Hub, "download", noted)
    answer_sizes(hub, model=3 * 1024**3)
    pcd_hub.fetch(REPO)
    sizes[".gitattributes"] = len(hub.files(REPO)[".gitattributes"])
    assert sizes == {name: len(raw) for name, raw in hub.files(REPO).items()}


def test_nobody_waits_long_for_a_silent_hub(hub, commit, monkeypatch):
    monkeypatch.setattr(hub_module, "_PATIENCE_SECONDS", 1.0)
    hub.fault("stall", "/api/models/", after=0, seconds=6, times=99)
    start = time.monotonic()
    with pytest.raises(HubUnreachableError, match="does not answer"):
        pcd_hub.fetch(REPO)
    assert time.monotonic() - start < 15, "one timeout of 2 s, no row of retries"


def at_once(count, call):
    """What ``count`` threads return; none may raise."""
    found, errors = [], []

    def one():
        try:
            found.append(call())
        except Exception as error:  # shown below
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return found


def test_several_at_once_fetch_the_same_whole_weight(commit, model):
    assert len(set(at_once(4, lambda: pcd_hub.fetch(REPO).folder))) == 1
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert not drafts()


FETCH = "import pcd_hub; print(pcd_hub.fetch('org/test_resnet.pcd').folder)"


def test_several_processes_fetch_the_same_whole_weight(hub, commit, tmp_path):
    env = {**hub.env(tmp_path / "home"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    found = at_once(
        3, lambda: subprocess.check_output([sys.executable, "-c", FETCH], env=env, text=True)
    )
    (folder,) = {Path(line.strip()) for line in found}
    true = hub.files(REPO)
    assert {p.name: p.read_bytes() == true[p.name] for p in folder.iterdir()} == dict.fromkeys(
        true.keys() - {".gitattributes"}, True
    )


def test_processes_that_are_killed_in_a_download_leave_nothing_half(hub, commit, tmp_path):
    """One after the other, each at another file, in the same home."""
    env = {**hub.env(tmp_path / "home"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    true = hub.files(REPO)
    for file in ("/pcd_manifest.json", "/config.json", "^/cdn/"):
        stall = hub.fault("stall", file, method="GET", seconds=8)
        process = subprocess.Popen([sys.executable, "-c", FETCH], env=env)
        while not stall.hits:
            time.sleep(0.05)
            assert process.poll() is None, file
        process.kill()
        process.wait()
        for path in (tmp_path / "home").rglob("snapshots/*/*"):
            assert path.read_bytes() == true[path.name], file
        hub.faults.clear()
    subprocess.run([sys.executable, "-c", FETCH], env=env, check=True)
    assert {p.name for p in (tmp_path / "home").rglob("snapshots/*/*")} == true.keys() - {
        ".gitattributes"
    }


def test_a_draft_that_another_process_has_just_removed_is_no_error(commit, monkeypatch):
    draft = Path(constants.HF_HUB_CACHE) / "models--org--test_resnet.pcd" / ".pcd-hub-killed"
    draft.mkdir(parents=True)
    glob = Path.glob

    def removed_meanwhile(self, pattern):
        found = list(glob(self, pattern))
        shutil.rmtree(draft, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, "glob", removed_meanwhile)
    assert pcd_hub.fetch(REPO).commit == commit


@pytest.mark.parametrize("meanwhile", ["moved away", "downloaded too"])
def test_another_process_in_the_same_folder_is_no_error(
    commit, model, meanwhile, monkeypatch, tmp_path
):
    folder = pcd_hub.fetch(REPO).folder
    flip(folder / "model.safetensors")
    download = hub_module.Hub.download

    def in_the_meantime(self, repo, commit, path, *arguments, **named):
        arrived = download(self, repo, commit, path, *arguments, **named)
        if path == "model.safetensors":
            monkeypatch.setattr(hub_module.Hub, "download", download)
            if meanwhile == "moved away":
                folder.rename(tmp_path / "damaged")
            pcd_hub.fetch(f"{REPO}@{commit}")
        return arrived

    monkeypatch.setattr(hub_module.Hub, "download", in_the_meantime)
    assert pcd_hub.fetch(f"{REPO}@{commit}").folder == folder
    assert same_tensors(model, pcd_hub.create_model(f"{REPO}@{commit}"))
    assert not drafts()


def test_while_several_download_the_same_commit_no_file_is_ever_missing(commit):
    folder = pcd_hub.fetch(REPO).folder
    names = sorted(path.name for path in folder.iterdir())
    flip(folder / "model.safetensors")
    missing, is_over = set(), threading.Event()

    def watch():
        while not is_over.is_set():
            missing.update(name for name in names if not (folder / name).is_file())

    watcher = threading.Thread(target=watch)
    watcher.start()
    at_once(4, lambda: pcd_hub.fetch(f"{REPO}@{commit}"))
    is_over.set()
    watcher.join()
    assert not missing


# Names.


def test_the_organisation_names_the_namespace_of_the_entries(hub, tmp_path, monkeypatch):
    model = timm.create_model("resnet18", num_classes=0)
    hub.add_repo("org/resnet18.pcd", files_of(exported(tmp_path / "export", "resnet18", model)))
    with pytest.raises(WeightError, match="PCD_HUB_ORG"):
        pcd_hub.create_model("resnet18.pcd")
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    assert same_tensors(model, pcd_hub.create_model("resnet18.pcd"))
    by_timm = timm.create_model("resnet18.pcd", pretrained=True)
    assert same_tensors(model, by_timm)
    features = timm.create_model("resnet18.pcd", pretrained=True, features_only=True)
    assert torch.equal(features.conv1.weight, model.conv1.weight)
    before = len(hub.requests)
    timm.create_model("resnet18.pcd", pretrained=False)
    assert len(hub.requests) == before, "random weights ask nobody"


def test_a_local_weight_does_not_stand_in_for_a_published_one(
    hub, commit, model, tmp_path, monkeypatch
):
    store.add("test_resnet.pcd", filled(2.0, tmp_path / "mine"))
    assert next(pcd_hub.create_model("test_resnet.pcd").parameters()).unique().tolist() == [2.0]
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    with pytest.raises(WeightError, match="is ambiguous.*PCD_HUB_LOCAL=1.*PCD_HUB_LOCAL=0"):
        pcd_hub.create_model("test_resnet.pcd")
    monkeypatch.setenv("PCD_HUB_LOCAL", "1")
    assert next(pcd_hub.create_model("test_resnet.pcd").parameters()).unique().tolist() == [2.0]
    monkeypatch.setenv("PCD_HUB_LOCAL", "0")
    assert same_tensors(model, pcd_hub.create_model("test_resnet.pcd"))


def test_a_local_weight_that_the_organisation_has_not_published_is_used(
    hub, commit, model, tmp_path, monkeypatch, caplog
):
    store.add("test_resnet.pcd_mine", tmp_path / "export")
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    assert same_tensors(model, pcd_hub.create_model("test_resnet.pcd_mine"))
    assert "the local weight is used; org/test_resnet.pcd_mine does not exist" in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PCDHubError, match="may differ from org/test_resnet.*PCD_HUB_LOCAL=1"):
        pcd_hub.create_model("test_resnet.pcd_mine")


def test_the_same_weight_here_and_there_is_one(hub, commit, model, tmp_path, monkeypatch):
    store.add("test_resnet.pcd", tmp_path / "export")
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    monkeypatch.setenv("PCD_HUB_LOCAL", "0")
    pcd_hub.create_model("test_resnet.pcd")
    monkeypatch.delenv("PCD_HUB_LOCAL")
    assert same_tensors(model, pcd_hub.create_model("test_resnet.pcd"))


def test_a_local_weight_equal_to_an_old_published_one_does_not_hide_the_new(
    hub, commit, tmp_path, monkeypatch
):
    store.add("test_resnet.pcd", tmp_path / "export")
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    pcd_hub.create_model("test_resnet.pcd")
    hub.commit(REPO, files_of(filled(2.0, tmp_path / "new")))
    with pytest.raises(WeightError, match="is ambiguous"):
        pcd_hub.create_model("test_resnet.pcd")
    monkeypatch.setenv("PCD_HUB_LOCAL", "0")
    assert next(pcd_hub.create_model("test_resnet.pcd").parameters()).unique().tolist() == [2.0]


def test_others_may_read_what_was_exported_stored_and_pinned(commit, tmp_path):
    """A store is shared by a team; safetensors, mkdtemp and umask would close it to all but one."""
    store.home().mkdir()
    store.home().chmod(0o775)
    before = os.umask(0o077)
    try:
        stored = store.add("test_resnet.pcd", tmp_path / "export")
        pcd_hub.fetch(REPO)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in store.home().rglob("*")}
    finished = {stored, store.home() / "test_resnet.pcd"}
    for path, mode in modes.items():
        folder_mode = 0o755 if path in finished else 0o775
        assert mode == (folder_mode if path.is_dir() else 0o644), path
    export = tmp_path / "export"
    assert {path.stat().st_mode & 0o777 for path in export.iterdir()} == {0o644}
    assert export.stat().st_mode & 0o777 == 0o755


def test_a_store_that_is_closed_to_this_user_is_one_line(hub, commit, monkeypatch):
    pcd_hub.fetch(REPO)
    store.home().chmod(0)
    if is_root := os.geteuid() == 0:
        os.seteuid(65534)  # rights do not bind root
    try:
        for ask in (
            store.names,
            lambda: store.where("test_resnet.pcd"),
            lambda: pcd_hub.create_model("test_resnet.pcd"),
            lambda: pcd_hub.create_model(f"{REPO}@{commit}"),
            lambda: pcd_hub.fetch(REPO),
            lambda: store.check_can_add("test_resnet.pcd"),
        ):
            with pytest.raises(PCDHubError, match="Permission denied; ") as caught:
                ask()
            assert "\n" not in str(caught.value)
    finally:
        if is_root:
            os.seteuid(0)
        store.home().chmod(0o755)


def test_a_card_that_was_edited_on_the_hub_is_named(hub, commit):
    hub.commit(REPO, {"README.md": b"# mine"})
    with pytest.raises(
        WeightError, match="README.md has sha256 .* was edited on the Hub.*publish` again"
    ):
        pcd_hub.fetch(REPO)
    assert pcd_hub.fetch(f"{REPO}@{commit}").commit == commit, "the one before stands"


def test_a_published_record_pins_commit_and_manifest(hub, commit, model, tmp_path, monkeypatch):
    fetched = pcd_hub.fetch(REPO)
    record = published.PublishedWeight(
        name="test_resnet.pcd",
        repo=REPO,
        commit=commit,
        manifest_sha256=fetched.manifest_sha256,
        weights_sha256=sha256(fetched.folder / "model.safetensors"),
        license="apache-2.0",
        parameters=1,
        features=(0.0,) * 8,
    )
    monkeypatch.setattr(published, "published_weights", lambda: {record.name: record})
    monkeypatch.setattr(create, "published_weights", lambda: {record.name: record})
    hub.commit(REPO, files_of(filled(2.0, tmp_path / "two")))
    assert same_tensors(model, pcd_hub.create_model("test_resnet.pcd"))
    other = dataclasses.replace(record, manifest_sha256="0" * 64)
    monkeypatch.setattr(published, "published_weights", lambda: {record.name: other})
    with pytest.raises(
        WeightError, match="pinned by the list of published weights; it is not the weight you mean"
    ):
        pcd_hub.create_model("test_resnet.pcd")


def test_the_caller_may_pin_the_manifest(hub, commit):
    right = pcd_hub.fetch(REPO).manifest_sha256
    assert pcd_hub.create_model(REPO, manifest_sha256=right)
    with pytest.raises(WeightError, match="was pinned by the caller"):
        pcd_hub.create_model(REPO, manifest_sha256="0" * 64)


def test_fetched_weights_are_listed_and_found(commit, tmp_path):
    store.add("test_resnet.pcd_mine", tmp_path / "export")
    pcd_hub.fetch(REPO)
    listed = {weight.name: weight.origin for weight in pcd_hub.list_weights()}
    assert listed == {"test_resnet.pcd_mine": "local", f"{REPO}@{commit}": "fetched"}
    assert pcd_hub.list_weights(license="mit") == []
    assert len(pcd_hub.list_weights(license="apache-2.0")) == 2
    assert pcd_hub.where(REPO) == fetch.fetched_folder(f"{REPO}@{commit}")
    assert pcd_hub.where("org/other") is None


def test_a_published_name_is_found_where_it_was_fetched(commit, monkeypatch):
    assert pcd_hub.where("test_resnet.pcd") is None
    monkeypatch.setenv("PCD_HUB_ORG", "org")
    assert pcd_hub.where("test_resnet.pcd") is None
    folder = pcd_hub.fetch("test_resnet.pcd").folder
    assert pcd_hub.where("test_resnet.pcd") == folder
