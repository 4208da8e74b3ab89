"""scripts/verify_release.py measures what is published, and notices what is not the same."""

import dataclasses
import json
import shutil
import sys

import pytest
import timm

import pcd_hub
import verify_release
from tests.hub.surroundings import point_client_at
from tests.weights.making import exported, files_of, filled

REPO = "org/test_resnet.pcd"


@pytest.fixture
def entry(hub, monkeypatch, tmp_path):
    hub.add_user("ann", token="hf_ann", orgs=("org",))
    point_client_at(hub, monkeypatch, token="hf_ann")
    return pcd_hub.publish(exported(tmp_path / "export"), REPO).record


def verify(entry, tmp_path, monkeypatch, capsys):
    records = tmp_path / "records.json"
    records.write_text(json.dumps([dataclasses.asdict(entry)]))
    monkeypatch.setattr(sys, "argv", ["verify_release.py", "--records", str(records)])
    with pytest.raises(SystemExit) as caught:
        verify_release.main()
    return caught.value.code, capsys.readouterr().out


def test_a_release_that_is_the_same(entry, tmp_path, monkeypatch, capsys):
    code, out = verify(entry, tmp_path, monkeypatch, capsys)
    assert (code, "1 published weights, 0 differ" in out) == (0, True), out
    assert not (tmp_path / "cache").exists(), "the user's own cache proves nothing"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parameters": 1}, "its parameters is 372688, expected 1"),
        ({"weights_sha256": "0" * 64}, "its weights is"),
        ({"license": "mit"}, "its licence is apache-2.0, expected mit"),
        ({"features": (9.0,) * 8}, "its features are"),
        ({"manifest_sha256": "0" * 64}, "was pinned"),
        ({"commit": "0" * 40}, "no such revision"),
    ],
)
def test_a_release_that_differs(entry, tmp_path, monkeypatch, capsys, changed, message):
    other = dataclasses.replace(entry, **changed)
    code, out = verify(other, tmp_path, monkeypatch, capsys)
    assert code == 1
    assert "DIFFERS" in out
    assert message in out


def test_a_card_that_was_edited_and_re_listed_is_noticed(hub, entry, tmp_path, monkeypatch, capsys):
    """Manifest and list agree with the edited card; the record does not render it."""
    from pcd_hub.weights.manifest import sha256, write_manifest

    folder = shutil.copytree(pcd_hub.fetch(REPO).folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "cache")
    card = (folder / "README.md").read_text().replace("50.23", "99.99")
    (folder / "README.md").write_text(card)
    write_manifest(folder, json.loads((folder / "pcd_manifest.json").read_text())["record"])
    commit = hub.commit(REPO, files_of(folder))
    manifest = sha256(folder / "pcd_manifest.json")
    other = dataclasses.replace(entry, commit=commit, manifest_sha256=manifest)
    code, out = verify(other, tmp_path, monkeypatch, capsys)
    assert code == 1
    assert "its card is not rendered from its record" in out


def test_the_packages_own_list_is_empty_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify_release.py"])
    with pytest.raises(SystemExit) as caught:
        verify_release.main()
    assert caught.value.code == 0
    assert "0 published weights, 0 differ" in capsys.readouterr().out


def test_the_golden_features_tell_weights_apart(tmp_path):
    from pcd_hub.weights.create import golden_features

    one = golden_features(timm.create_model("test_resnet", num_classes=0), 64)
    two = golden_features(pcd_hub.create_model(f"local-dir:{filled(0.1, tmp_path / 'e')}"), 64)
    assert len(one) == 8
    assert one != two
