"""pcd_hub.publish against a loopback Hub, through the real client."""

import dataclasses
import json
import os
import time
import traceback
import tracemalloc

import pytest
import timm
import yaml

import pcd_hub
from pcd_hub.errors import HubError, HubUnreachableError, WeightError
from pcd_hub.weights import store
from pcd_hub.weights.hub import client as hub_module
from pcd_hub.weights.hub import publish as publish_module
from tests.hub.surroundings import point_client_at, settle
from tests.weights.making import exported, files_of, filled, record, same_tensors

REPO = "org/test_resnet.pcd"
TOKEN = "hf_" + "a1B2" * 9


@pytest.fixture(autouse=True)
def ann(hub, monkeypatch):
    hub.add_user("ann", token=TOKEN, orgs=("org",))
    point_client_at(hub, monkeypatch, token=TOKEN)
    monkeypatch.setattr(hub_module, "_TIMEOUT_SECONDS", 2.0)
    yield
    hub.faults.clear()
    settle()


@pytest.fixture
def export(tmp_path):
    return exported(tmp_path / "run" / "export")


def test_a_new_repository_is_private_until_its_files_came_back_the_same(hub, export):
    done = pcd_hub.publish(export, REPO)
    assert done.public
    assert not hub.repo(REPO).private
    assert done.commit == hub.head(REPO)
    assert set(hub.files(REPO)) - {".gitattributes"} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "pca.png",
        "pcd_manifest.json",
    }
    calls = [(call.method, call.path) for call in hub.requests]
    opened = next(i for i, call in enumerate(calls) if call[1].endswith("/settings"))
    committed = next(i for i, call in enumerate(calls) if "/commit/" in call[1])
    read_back = [i for i, call in enumerate(calls) if call[0] == "GET" and "/resolve" in call[1]]
    assert committed < min(read_back) <= max(read_back) < opened
    assert hub.count("POST", "/commit/") == 1


def test_no_folder_of_this_machine_is_published(hub, tmp_path):
    data = {"source": "/home/ann/photos", "fingerprint": "3 files", "images": 3}
    export = exported(tmp_path / "run" / "export", data=data)
    pcd_hub.publish(export, REPO)
    for name in ("README.md", "pcd_manifest.json"):
        assert b"/home/ann" not in hub.files(REPO)[name], name
        assert b"photos" in hub.files(REPO)[name], name


def test_a_second_time_changes_nothing_and_reports_the_same_commit(hub, export):
    first = pcd_hub.publish(export, REPO)
    before = len(hub.requests)
    again = pcd_hub.publish(export, REPO)
    assert (again.commit, again.changes) == (first.commit, ())
    assert again.record == first.record
    assert not [call for call in hub.requests[before:] if call.method in {"POST", "PUT", "DELETE"}]


def test_a_run_folder_and_a_name_in_the_store_are_the_same_weight(hub, export, tmp_path):
    store.add("test_resnet.pcd", export)
    by_run = pcd_hub.publish(tmp_path / "run", REPO)
    by_name = pcd_hub.publish("test_resnet.pcd", REPO)
    assert by_name.changes == ()
    assert by_name.commit == by_run.commit


def test_the_last_export_of_a_resumed_run_counts(hub, export, tmp_path):
    filled(2.0, tmp_path / "run" / "export-2")
    pcd_hub.publish(tmp_path / "run", REPO)
    model = pcd_hub.create_model(REPO)
    assert all(bool((tensor == 2).all()) for tensor in model.parameters())


def test_a_new_version_is_one_commit_on_the_old_one(hub, export, tmp_path):
    first = pcd_hub.publish(export, REPO)
    newer = filled(2.0, tmp_path / "two" / "export")
    second = pcd_hub.publish(newer, REPO)
    assert second.changes == ("~ README.md", "~ model.safetensors", "~ pcd_manifest.json")
    assert hub.repo(REPO).commits[second.commit].parent == first.commit


def test_private_stays_private_and_nothing_opens_it_by_accident(hub, export):
    done = pcd_hub.publish(export, REPO, private=True)
    assert not done.public
    assert hub.repo(REPO).private
    with pytest.raises(HubError, match="exists and is private, .* --private .* or --public"):
        pcd_hub.publish(export, REPO)
    assert hub.repo(REPO).private
    assert pcd_hub.publish(export, REPO, public=True).commit == done.commit
    assert not hub.repo(REPO).private
    with pytest.raises(HubError, match="is public already"):
        pcd_hub.publish(export, REPO, private=True)


def test_a_dry_run_says_what_the_visibility_would_refuse(hub, export, tmp_path):
    pcd_hub.publish(export, REPO, private=True)
    with pytest.raises(HubError, match="exists and is private"):
        pcd_hub.publish(export, REPO, dry_run=tmp_path / "plan")
    pcd_hub.publish(export, REPO, public=True)
    with pytest.raises(HubError, match="is public already"):
        pcd_hub.publish(export, REPO, private=True, dry_run=tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_a_dry_run_writes_the_folder_and_changes_nothing(hub, export, tmp_path):
    plan = pcd_hub.publish(export, REPO, dry_run=tmp_path / "plan")
    assert REPO not in hub.repos
    assert plan.commit is None
    assert plan.changes[0] == "+ README.md"
    done = pcd_hub.publish(export, REPO)
    sent = {p.name: p.read_bytes() for p in (tmp_path / "plan").iterdir()}
    published = hub.files(REPO)
    del published[".gitattributes"]
    assert published == sent
    assert pcd_hub.publish(export, REPO, dry_run=tmp_path / "plan2").changes == ()
    with pytest.raises(WeightError, match="exists already"):
        pcd_hub.publish(export, REPO, dry_run=tmp_path / "plan2")
    assert done.commit == hub.head(REPO)


def test_a_first_publish_that_failed_is_finished_and_opened_only_if_said(hub, export):
    hub.fault("status", "/preupload/", status=500, times=99)
    with pytest.raises(HubUnreachableError):
        pcd_hub.publish(export, REPO)
    hub.faults.clear()
    with pytest.raises(HubError, match="perhaps because publishing was interrupted"):
        pcd_hub.publish(export, REPO)
    assert pcd_hub.publish(export, REPO, public=True).public


def test_a_lost_reply_of_create_is_recognised(hub, export):
    fault = hub.fault("lost_reply", "/api/repos/create")
    assert pcd_hub.publish(export, REPO).public
    assert fault.hits == 1


def test_an_error_names_its_own_cause(hub, export):
    hub.fault("status", "/api/repos/create", status=500, times=99)
    with pytest.raises(HubError, match="does not exist") as caught:
        pcd_hub.publish(export, REPO)
    assert not isinstance(caught.value, HubUnreachableError)


@pytest.mark.parametrize("path", ["/repos/create", "/preupload/", "/commit/", "/settings"])
def test_a_silent_hub_ends_every_step(hub, export, monkeypatch, path):
    monkeypatch.setattr(hub_module, "_SILENCE_SECONDS", 1.5)
    monkeypatch.setattr(hub_module, "_BYTES_PER_SECOND", 1e9)
    hub.fault("stall", path, after=0, seconds=4, times=99)
    start = time.monotonic()
    if path in {"/repos/create", "/commit/"}:  # carried out all the same, which is recognised
        assert pcd_hub.publish(export, REPO).commit == hub.head(REPO)
    else:
        with pytest.raises(HubUnreachableError, match="no progress for"):
            pcd_hub.publish(export, REPO)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("how", ["a link", "a pipe", "other bytes", "as many other bytes"])
def test_what_changes_while_it_is_published_is_refused(hub, export, tmp_path, monkeypatch, how):
    """Verified, then swapped for a link to a secret, or rewritten: only verified bytes are sent."""
    secret = tmp_path / "secret"
    picture = export / "pca.png"
    secret.write_text("PRIVATE KEY" if how != "as many other bytes" else "x" * len(read(picture)))
    read_whole = publish_module.read_weight

    def read_and_swap(folder, **named):
        weight = read_whole(folder, **named)
        if folder == export:
            picture.unlink()
            if how == "a pipe":
                os.mkfifo(picture)
            elif how == "a link":
                picture.symlink_to(secret)
            else:
                picture.write_bytes(read(secret))
        return weight

    monkeypatch.setattr(publish_module, "read_weight", read_and_swap)
    with pytest.raises(WeightError, match="pca.png (has|is missing)"):
        pcd_hub.publish(export, REPO)
    assert not hub.requests


def read(path):
    return path.read_bytes()


@pytest.mark.parametrize("name", ["pca.png", "config.json", "pcd_manifest.json"])
def test_what_is_larger_than_the_manifest_says_is_not_even_read(hub, export, name, monkeypatch):
    os.truncate(export / name, 3 * 1024**3)
    tracemalloc.start()
    with pytest.raises(WeightError, match=f"{name} has .* bytes"):
        pcd_hub.publish(export, REPO)
    assert tracemalloc.get_traced_memory()[1] < 50 * 1024**2
    tracemalloc.stop()


OTHERS = {"LICENSE": b"theirs", "onnx/model.onnx": b"1", "model.bin": b"2", ".env": b"3"}


def test_other_files_in_the_repository_are_left_alone(hub, export, tmp_path):
    """Before the first publish, and after it."""
    hub.add_repo(REPO, {"train.py": b"print()"})
    done = pcd_hub.publish(export, REPO)
    assert [mark for mark in done.changes if mark[0] != "+"] == []
    hub.commit(REPO, OTHERS)
    assert pcd_hub.publish(export, REPO).changes == ()
    newer = pcd_hub.publish(filled(2.0, tmp_path / "two"), REPO)
    assert hub.head(REPO) == newer.commit
    held = hub.files(REPO)
    assert {name: held[name] for name in OTHERS} == OTHERS
    assert held["train.py"] == b"print()"
    assert pcd_hub.fetch(REPO).commit == newer.commit


def test_a_dry_run_says_what_is_wrong_with_the_token(hub, export, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(HubError, match="rejects the token"):
        pcd_hub.publish(export, REPO, dry_run=tmp_path / "plan")


def test_a_revision_or_both_visibilities_make_no_sense(export):
    for repo, how in [(f"{REPO}@v1", {}), (REPO, {"private": True, "public": True})]:
        with pytest.raises(WeightError, match="one commit on its main branch, either private or"):
            pcd_hub.publish(export, repo, **how)


def test_a_dry_run_without_a_hub_leaves_nothing(hub, export, tmp_path):
    hub.fault("status", "/api/models/", status=503, times=9)
    with pytest.raises(HubUnreachableError):
        pcd_hub.publish(export, REPO, dry_run=tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_the_record_for_the_list_names_what_is_there(hub, export):
    record_ = pcd_hub.publish(export, REPO).record
    fetched = pcd_hub.fetch(f"{REPO}@{record_.commit}", manifest_sha256=record_.manifest_sha256)
    assert fetched.commit == record_.commit
    assert record_.parameters == sum(
        p.numel() for p in timm.create_model("test_resnet", num_classes=0).parameters()
    )
    assert len(record_.features) == 8


# Faults on the way.


def test_a_lost_reply_is_recognised(hub, export):
    fault = hub.fault("lost_reply", "/commit/")
    done = pcd_hub.publish(export, REPO)
    assert fault.hits == 1
    assert done.commit == hub.head(REPO)
    assert len(hub.repo(REPO).commits) == 2, "the Hub's own first commit, and ours"
    assert done.public


def test_a_failed_commit_is_an_error_and_leaves_the_repository_private(hub, export):
    hub.fault("status", "/commit/", status=500, times=9)
    with pytest.raises(HubUnreachableError, match=rf"cannot write to {REPO}: .* answered 500"):
        pcd_hub.publish(export, REPO)
    assert hub.repo(REPO).private
    assert list(hub.files(REPO)) == [".gitattributes"]


def test_a_commit_that_came_between_is_not_overwritten(hub, export, monkeypatch):
    """Somebody else commits after we looked: 412, and theirs stands."""
    original = hub_module.Hub.commit

    def late(self, *arguments, **named):
        hub.commit(REPO, {"README.md": b"theirs"})
        return original(self, *arguments, **named)

    monkeypatch.setattr(hub_module.Hub, "commit", late)
    with pytest.raises(HubError, match="it changed in the meantime; run the command again"):
        pcd_hub.publish(export, REPO)
    assert hub.files(REPO)["README.md"] == b"theirs"
    assert hub.repo(REPO).private


def test_other_bytes_that_come_back_keep_it_private(hub, export):
    hub.fault("flip", "^/cdn/", times=9)
    with pytest.raises(HubError, match="returned another model.safetensors"):
        pcd_hub.publish(export, REPO)
    assert hub.repo(REPO).private


@pytest.mark.parametrize(
    ("token", "role", "orgs", "message"),
    [
        ("hf_bob", "write", (), "may not"),
        ("hf_ann2", "read", ("org",), "may not"),
        ("hf_nobody", None, (), "rejects the token"),
        (None, None, (), "does not exist on .* not visible to anonymous|rejects the token|may not"),
    ],
)
def test_whoever_may_not_is_told_so(hub, export, monkeypatch, token, role, orgs, message):
    if role:
        hub.add_user("bob", token=token, orgs=orgs, role=role)
    point_client_at(hub, monkeypatch, token=token)
    with pytest.raises(HubError, match=message):
        pcd_hub.publish(export, REPO)
    assert REPO not in hub.repos


# What is not published.


def test_only_files_that_the_manifest_names_are_published(hub, export, tmp_path, caplog):
    """No link, dotfile, pickle, folder or picture that was put there afterwards."""
    names = {path.name for path in export.iterdir()}
    secret = tmp_path / "secret.png"
    secret.write_text("secret")
    (export / "link.png").symlink_to(secret)
    for name in (".env", "model.bin", "more.png"):
        (export / name).write_text("secret")
    (export / "sub").mkdir()
    (export / "sub" / "key").write_text("secret")
    os.mkfifo(export / "pipe")
    pcd_hub.publish(export, REPO)
    held = hub.files(REPO)
    assert held.keys() == {*names, ".gitattributes"}
    assert not [name for name, content in held.items() if b"secret" in content]
    for name in ("link.png", ".env", "model.bin", "more.png", "sub", "pipe"):
        assert f"{name} is not published: the manifest does not name it" in caplog.text


def test_a_manifest_that_names_what_is_no_weights_file_is_refused(hub, export):
    for name in (".env", "model.bin", "setup.py"):
        (export / name).write_text("x")
        files = [*files_of(export), name]
        entries = [{"path": n, "size": 1, "sha256": "0" * 64} for n in files if "manifest" not in n]
        manifest = json.loads((export / "pcd_manifest.json").read_text())
        (export / "pcd_manifest.json").write_text(json.dumps({**manifest, "files": entries}))
        with pytest.raises(WeightError, match=f"'{name}' is not a file of a weight"):
            pcd_hub.publish(export, REPO)
        (export / name).unlink()
    assert not hub.requests


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"code": {"commit": "c" * 40, "dirty": True}}, "uncommitted changes"),
        ({"code": {"commit": None, "dirty": None}}, "has neither a git commit nor a wheel"),
        ({"teacher": {"source": "x"}}, "no teacher.sha256"),
        ({"data": {"source": "x"}}, "no data.fingerprint"),
    ],
)
def test_a_dirty_or_incomplete_record_is_refused(hub, tmp_path, changed, message):
    folder = exported(tmp_path / "export", **changed)
    with pytest.raises(WeightError, match=message):
        pcd_hub.publish(folder, REPO)
    assert not hub.requests


def test_a_weight_made_by_an_installed_wheel_is_published(ann, hub, tmp_path):
    code = {"pcd_hub": "9", "commit": None, "wheel_sha256": "d" * 64, "dirty": False}
    folder = exported(tmp_path / "export", code=code)
    pcd_hub.publish(folder, REPO)
    assert f"files of the wheel, sha256 {'d' * 64}, pcd_hub 9" in (folder / "README.md").read_text()


def test_every_licence_must_be_said_and_none_contradicted(hub, tmp_path):
    stated = dict.fromkeys(("weights", "teacher", "data"), "not stated")
    folder = exported(tmp_path / "export", licenses={**stated, "code": "apache-2.0"})
    given: dict[str, str] = {}
    for option, what in [
        ("license", "weights"),
        ("teacher_license", "teacher"),
        ("data_license", "data"),
    ]:
        with pytest.raises(WeightError, match=f"licence of the {what} .* is not stated"):
            pcd_hub.publish(folder, REPO, **given)
        given[option] = "cc-by-4.0"
    pcd_hub.publish(folder, REPO, **given)
    card = hub.files(REPO)["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert json.loads(hub.files(REPO)["config.json"])["pretrained_cfg"]["license"] == "cc-by-4.0"
    clean = exported(tmp_path / "clean")
    with pytest.raises(WeightError, match="--teacher-license mit contradicts the record"):
        pcd_hub.publish(clean, REPO, teacher_license="mit")


def test_a_mean_of_a_shipped_start_is_published_with_both_facts(hub, tmp_path):
    start = {"source": "shipped", "name": "resnet18.pcd", "sha256": "b" * 64}
    licenses = {**record().licenses, "start": "apache-2.0"}
    averaged = {"share_of_start": 0.3, "trained_weights_sha256": "c" * 64}
    folder = exported(tmp_path / "export", start=start, licenses=licenses, averaged=averaged)
    pcd_hub.publish(folder, REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert "The training started from resnet18.pcd." in card
    assert "weighted mean of the trained ones and their start (30%)" in card
    assert json.loads(hub.files(REPO)["pcd_manifest.json"])["record"]["averaged"] == averaged


def test_the_licence_of_the_start_must_be_said_if_there_is_one(hub, tmp_path):
    start = {"source": "resnet18.a1_in1k", "name": "resnet18.a1_in1k", "sha256": "b" * 64}
    licenses = {**record().licenses, "start": "not stated"}
    folder = exported(tmp_path / "export", start=start, licenses=licenses)
    with pytest.raises(WeightError, match="licence of the start .* add --start-license ID"):
        pcd_hub.publish(folder, REPO)
    pcd_hub.publish(folder, REPO, start_license="mit")
    assert "| start | mit |" in hub.files(REPO)["README.md"].decode()
    published = json.loads(hub.files(REPO)["pcd_manifest.json"])["record"]
    assert (published["start"], published["licenses"]["start"]) == (start, "mit")
    with pytest.raises(WeightError, match="--start-license mit: .* started from random weights"):
        pcd_hub.publish(exported(tmp_path / "random"), REPO, start_license="mit")
    broken = exported(tmp_path / "broken", start={"source": "x"}, licenses=licenses)
    with pytest.raises(WeightError, match="incomplete: no start.sha256"):
        pcd_hub.publish(broken, REPO, start_license="mit")


def test_a_licence_that_the_hub_does_not_know_needs_its_text(hub, tmp_path):
    folder = exported(
        tmp_path / "export", licenses={**record().licenses, "weights": "house-licence"}
    )
    with pytest.raises(WeightError, match="no licence 'house-licence'.*--license-link"):
        pcd_hub.publish(folder, REPO)
    pcd_hub.publish(folder, REPO, license_link="https://example.org/licence")
    matter = yaml.safe_load(hub.files(REPO)["README.md"].decode().split("---")[1])
    assert matter["license"] == "other"
    assert matter["license_name"] == "house-licence"
    assert matter["license_link"] == "https://example.org/licence"


def test_a_damaged_weight_is_not_published(hub, export):
    with (export / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(WeightError, match="sha256"):
        pcd_hub.publish(export, REPO)
    assert not hub.requests


def test_what_is_no_weight_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightError, match=r"has no pcd_manifest.json; did the run finish"):
        pcd_hub.publish(tmp_path / "empty", REPO)
    (tmp_path / "empty" / "resnet18" / "export").mkdir(parents=True)
    with pytest.raises(WeightError, match=r"; name a student of it: .*empty.resnet18$"):
        pcd_hub.publish(tmp_path / "empty", REPO)
    with pytest.raises(WeightError, match="neither the folder of a run"):
        pcd_hub.publish("resnet18.pcd", REPO)
    with pytest.raises(WeightError, match="not a Hub repository"):
        pcd_hub.publish(tmp_path / "empty", "../x")


# Tokens.


def test_a_token_in_the_settings_is_not_published(hub, tmp_path):
    config = {"data": {"source": f"hf:org/data?token={TOKEN}"}}
    folder = exported(tmp_path / "export", config=config)
    with pytest.raises(WeightError, match="looks like a Hub token") as caught:
        pcd_hub.publish(folder, REPO)
    assert TOKEN not in str(caught.value)
    config = {"data": {"source": "https://ann:pw@example.org/x"}}
    with pytest.raises(WeightError, match="looks like a Hub token or a password"):
        pcd_hub.publish(exported(tmp_path / "two", config=config), REPO)
    assert not hub.requests


def test_the_token_is_in_no_output(hub, export, capfd, caplog, tmp_path, monkeypatch):
    """In no file, message, traceback or log; and never sent to the storage's host."""
    caplog.set_level("DEBUG")
    said = []
    pcd_hub.publish(export, REPO)
    for kind, match in [("status", "/commit/"), ("reset", "^/cdn/"), ("status", "/api/models/")]:
        hub.fault(kind, match, times=99, status=403) if kind == "status" else hub.fault(
            kind, match, times=99
        )
        newer = filled(float(len(said) + 2), tmp_path / str(len(said)))
        try:
            pcd_hub.publish(newer, REPO)
        except pcd_hub.PCDHubError:
            said.append(traceback.format_exc())
        hub.faults.clear()
    assert len(said) == 3
    out, err = capfd.readouterr()
    texts = [*said, out, err, caplog.text]
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in texts if TOKEN in text]
    assert not [call for call in hub.requests if call.path.startswith("/cdn") and call.authorized]
    assert any(call.authorized for call in hub.requests)


@pytest.mark.parametrize("token", ["hf_a b", "hf_\x07", "hf_ü"])
def test_a_malformed_token_is_not_sent_and_not_shown(hub, export, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=r"the Hub token \(\d+ characters\)") as caught:
        pcd_hub.publish(export, REPO)
    assert token not in str(caught.value)
    assert not hub.requests


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("http://example.org", "is not https"),
        ("https://ann:pw123@example.org", "carries a user name or password"),
        ("ftp://127.0.0.1", "is not https"),
    ],
)
def test_a_dangerous_endpoint_is_refused(export, monkeypatch, endpoint, message):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    with pytest.raises(HubError, match=message) as caught:
        pcd_hub.publish(export, REPO)
    assert "pw123" not in str(caught.value)


def test_a_published_weight_loads_the_same_values(hub, tmp_path):
    model = timm.create_model("test_resnet", num_classes=0)
    pcd_hub.publish(exported(tmp_path / "export", model=model), REPO)
    assert same_tensors(model, pcd_hub.create_model(REPO))
    assert dataclasses.is_dataclass(pcd_hub.fetch(REPO))
