"""``pcd-hub doctor``: facts, reasons, and never the token."""

import json

import huggingface_hub.constants
import pytest

from pcd_hub.cli import machine
from tests.cli.outcome import outcome
from tests.hub.conftest import hub  # noqa: F401
from tests.hub.surroundings import point_client_at, settle

SECRET = "hf_QzXwVuTsRqPoNm9876"


def doctor(capsys, *options):
    return outcome(capsys, "doctor", *options)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_machine_that_can_distil_is_ready(capsys, tmp_path):
    code, out, err = doctor(capsys, "--offline")
    assert (code, err) == (0, "")
    assert "A distillation can run here with a teacher of yours: --teacher local-dir:DIR." in out
    assert "none in the cache; a run has to download it" in out
    assert f"{tmp_path / 'store'}: writable" in out
    assert "not tried: --offline" in out
    assert not (tmp_path / "store").exists()


def test_json_has_the_same_facts(capsys):
    code, out, _ = doctor(capsys, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["ready"] is True
    assert found["problems"] == []
    assert found["machine"]["cpu_cores"] >= 1
    assert found["hub"]["reachable"] is None, "the tests run with HF_HUB_OFFLINE=1"
    assert found["variables"]["PCD_HUB_HOME"].endswith("store")
    torch = next(one for one in found["packages"] if one["name"] == "torch")
    assert torch["fits"]
    assert {place["what"] for place in found["places"]} >= {"store", "teacher cache"}


def test_a_store_that_cannot_be_written_is_a_reason(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "file" / "store"))
    code, out, err = doctor(capsys, "--offline")
    assert code == 1
    assert err.startswith("error: a distillation cannot run: cannot write to the folder of store")
    assert err.endswith("set PCD_HUB_HOME\n")
    assert err.count("\n") == 1
    assert "A distillation cannot run here:" in out


def test_a_user_without_a_home_folder_is_a_reason(capsys, monkeypatch):
    monkeypatch.setenv("PCD_HUB_HOME", "~nobody-of-that-name/store")
    code, out, err = doctor(capsys, "--offline", "--json")
    assert code == 1
    assert "home folder" in err
    assert not json.loads(out)["ready"]


def test_a_missing_package_is_a_reason_with_its_extra(capsys, monkeypatch):
    known = machine.installed_version
    monkeypatch.setattr(
        machine, "installed_version", lambda name: None if name == "tyro" else known(name)
    )
    code, _, err = doctor(capsys, "--offline")
    assert code == 1
    assert "tyro is not installed; pip install" in err
    assert 'pip install -U ".[train]" in the clone of pcd_hub' in err


def test_an_old_package_is_a_reason():
    old = machine.Package("timm", "", "1.0.9", ">=1.0.26", "pcd_hub")
    assert not old.fits
    assert old._replace(installed="1.0.26").fits


def test_the_token_is_never_printed(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PCD_HUB_ORG", f"x{SECRET}y")
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", f"http://ann:{SECRET}@127.0.0.1:9/{SECRET}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for options in ([], ["--json"]):
        _, out, err = doctor(capsys, *options)
        parts = {SECRET[start : start + 5] for start in range(len(SECRET) - 4)}
        assert not [part for part in parts if part in out + err]
        assert "present" in out or json.loads(out)["hub"]["token"] is True


def test_an_endpoint_that_answers_is_reachable(hub, monkeypatch, capsys):  # noqa: F811
    point_client_at(hub, monkeypatch)
    _, out, _ = doctor(capsys, "--json")
    assert json.loads(out)["hub"] == {
        "endpoint": hub.url,
        "reachable": True,
        "problem": None,
        "token": False,
    }
    _, out, _ = doctor(capsys)
    assert "A distillation can run here." in out
    assert "none in the cache; the first run downloads it" in out
    settle()


def test_an_endpoint_that_does_not_answer_is_no_reason_to_stop(monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    code, out, _ = doctor(capsys, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["hub"]["reachable"] is False
    assert found["hub"]["problem"]
    assert found["default_teacher"] is None
    _, out, _ = doctor(capsys)
    assert "can run here with a teacher of yours: --teacher local-dir:DIR." in out
    settle()
