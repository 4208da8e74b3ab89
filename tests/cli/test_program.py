"""``pcd-hub`` as a user calls it, in this process; as a command in tests/hub/test_user.py."""

import json
import runpy
import sys

import pytest

import pcd_hub.train
from pcd_hub import cli
from pcd_hub.weights import store
from tests.weights.making import exported, flip

NAME = "test_resnet.pcd"


@pytest.fixture
def stored(tmp_path):
    return store.add(NAME, exported(tmp_path / "export"))


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return str(caught.value.code)


def test_list_is_a_table_or_json(stored, capsys):
    cli.main(["list"])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["WEIGHT", "FROM", "LICENCE", "PARAMETERS", "FOLDER"]
    assert row.split()[:5] == [NAME, "local", "apache-2.0", "0.4", "M"]
    cli.main(["list", "--json", "--license", "apache-2.0"])
    (one,) = json.loads(capsys.readouterr().out)
    assert one["parameters"] == 372688
    cli.main(["list", "--license", "mit"])
    assert "no weights; distil one" in capsys.readouterr().out


def test_where_says_the_folder_or_what_there_is(stored, capsys):
    cli.main(["where", NAME])
    assert capsys.readouterr().out.strip() == str(pcd_hub.where(NAME))
    message = refused(capsys, "where", "resnet18.pcd")
    assert f"resnet18.pcd is not on this machine; {store.home()} holds {NAME}" in message


def test_show_prints_the_record(stored, capsys):
    cli.main(["show", NAME])
    out = capsys.readouterr().out
    assert "licenses teacher" in out
    assert "  distilled student         50.23" in out
    cli.main(["show", NAME, "--json"])
    assert json.loads(capsys.readouterr().out)["steps"] == 400


def test_verify_tells_the_whole_from_the_damaged(stored, tmp_path, capsys):
    store.add("test_resnet.pcd_two", tmp_path / "export")
    cli.main(["verify"])
    assert capsys.readouterr().out.count("OK ") == 2
    flip(stored / "model.safetensors")
    assert "1 of 2 weights are damaged or missing" in refused(capsys, "verify")
    out = capsys.readouterr().out
    assert "DAMAGED" in out
    assert "OK       test_resnet.pcd_two" in out


def test_a_damaged_manifest_is_listed_and_verified_as_such(stored, capsys):
    (stored / "pcd_manifest.json").write_text("{")
    cli.main(["list"])
    assert "unreadable" in capsys.readouterr().out
    assert "1 of 1 weights" in refused(capsys, "verify")
    assert "not strict JSON" in capsys.readouterr().out


def test_a_bundle_is_a_folder_in_store_layout(tmp_path, monkeypatch, capsys):
    exported(tmp_path / "bundle" / NAME)
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "bundle"))
    cli.main(["verify", NAME])
    assert "OK" in capsys.readouterr().out
    assert pcd_hub.create_model(NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "a/../b"], "not a Hub repository"),
        (["fetch", "resnet18.pcd"], "not among the published weights"),
        (["show", "resnet18.pcd"], "is not on this machine"),
        (["show", "resnet18"], "not a weight's name"),
        (["publish", "resnet18.pcd", "org/x"], "neither the folder of a run"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    said = refused(capsys, *arguments)
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "resnet18.pcd", "LONG", "--to", "timm"],
        ["import", "LONG", "--arch", "resnet18"],
        ["show", "./LONG"],
        ["add", "LONG"],
        ["publish", "LONG", "org/resnet18.pcd"],
        ["report", "LONG"],
        ["probe", "LONG"],
    ],
)
def test_an_impossible_file_name_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([word.replace("LONG", 300 * "a") for word in arguments])
    message = f"{ended.value.code}\n{capsys.readouterr().err}"
    (line,) = [each for each in message.splitlines() if "error: " in each]
    assert 60 * "a" in line
    assert "Traceback" not in message


def test_fetch_offline_names_the_way_out(capsys):
    """The tests run with HF_HUB_OFFLINE=1."""
    assert "was not fetched (" in refused(capsys, "fetch", "org/resnet18.pcd")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["publish", "x", "org/x", "--private", "--public"], "argument --public: not allowed with"),
        (
            ["show"],
            "the following arguments are required: NAME|ORG/NAME[@REV]; see pcd-hub show",
        ),
        (["sho", "x"], "argument COMMAND: invalid choice: 'sho'"),
        ([], "the following arguments are required: COMMAND; see pcd-hub --help"),
    ],
)
def test_what_is_typed_wrong_is_one_line_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pcd_hub", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("pcd_hub")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pcd_hub {pcd_hub.__version__}\n"


def test_distill_has_the_options_of_the_recipe(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["distill", "--help"])
    assert caught.value.code == 0
    assert "--teacher.source" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["distill", "quickstrat"])
    assert caught.value.code == 2
    assert "did you mean 'quickstart'" in capsys.readouterr().err


def test_distill_without_accelerate_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delattr(pcd_hub.train, "distill", raising=False)
    monkeypatch.delitem(sys.modules, "pcd_hub.train.distill", raising=False)
    with pytest.raises(SystemExit, match=r'accelerate.*; pip install ".\[train\]" in the clone'):
        cli.main(["distill"])


def test_probe_and_compare_have_the_options_of_the_recipes(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["probe", "--help"])
    assert caught.value.code == 0
    assert "pcd-hub probe facades random:resnet18 runs/own_images" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare"])
    assert caught.value.code == 2
    assert "error: no run: expected at least one, pcd-hub compare" in capsys.readouterr().err
