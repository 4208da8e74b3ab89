"""``--json``: the result alone on standard output, with the keys that the help names."""

import json
import re
from pathlib import Path

import pytest

from pcd_hub import cli
from pcd_hub.weights import store
from tests.cli.outcome import outcome
from tests.cli.test_program import NAME, stored  # noqa: F401
from tests.evaluate.tables import table
from tests.hub.conftest import hub  # noqa: F401
from tests.hub.surroundings import point_client_at, settle
from tests.weights.making import exported, flip

TOKEN = "hf_" + "a1B2" * 9


def result(capsys, *arguments):
    """Run a command and return its JSON, whose keys the help must name."""
    cli.main([*arguments, "--json"])
    value = json.loads(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        cli.main([arguments[0], "--help"])
    shown = re.search(r"print JSON: .*?\{(.*?)\}", capsys.readouterr().out, re.DOTALL)
    if shown:
        named = set(re.findall(r"\w+", shown[1]))
        keys = set((value[0] if isinstance(value, list) else value).keys())
        assert keys >= named, "the help names a key that is not there"
    return value


@pytest.mark.usefixtures("stored")
def test_list_where_and_verify(capsys):
    assert result(capsys, "list")[0]["name"] == NAME
    folder = str(store.where(NAME))
    assert result(capsys, "where", NAME) == {"name": NAME, "folder": folder}
    (verified,) = result(capsys, "verify")
    assert (verified["name"], verified["error"]) == (NAME, None)
    assert Path(verified["folder"]).resolve() == Path(folder).resolve()


def test_damage_is_in_the_json_and_one_line_and_code_1(stored, capsys):  # noqa: F811
    flip(stored / "model.safetensors")
    code, out, err = outcome(capsys, "verify", NAME, "--json")
    assert code == 1
    (one,) = json.loads(out)
    assert "sha256" in one["error"]
    assert err == "error: 1 of 1 weights are damaged or missing\n"


def test_a_weight_that_is_missing_is_not_called_damaged(stored, capsys):  # noqa: F811
    flip(stored / "model.safetensors")
    _, out, _ = outcome(capsys, "verify", NAME, f"{NAME}_typo")
    damaged, missing = out.splitlines()
    assert damaged.startswith("DAMAGED  ")
    assert missing.startswith(f"MISSING  {NAME}_typo is not on this machine")


def test_an_error_leaves_standard_output_empty(capsys):
    code, out, err = outcome(capsys, "where", NAME, "--json")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {NAME} is not on this machine")


def test_add(tmp_path, capsys):
    added = result(capsys, "add", str(exported(tmp_path / "export")))
    assert added == {"name": NAME, "folder": str(store.home() / NAME)}


def test_publish_and_fetch(hub, monkeypatch, tmp_path, capsys):  # noqa: F811
    hub.add_user("ann", token=TOKEN, orgs=("org",))
    point_client_at(hub, monkeypatch, token=TOKEN)
    run, repo = str(exported(tmp_path / "export")), "org/test_resnet.pcd"
    dry = result(capsys, "publish", run, repo, "--dry-run", "--out", str(tmp_path / "out"))
    assert dry["folder"] == str(tmp_path / "out")
    assert dry["record"] is None
    done = result(capsys, "publish", run, repo, "--private")
    assert done["record"]["commit"] == done["commit"]
    fetched = result(capsys, "fetch", repo)
    assert fetched["commit"] == done["commit"]
    settle()


def test_compare(tmp_path, capsys):
    table().save(tmp_path / "eval")
    (one,) = result(capsys, "compare", str(tmp_path / "eval"))
    assert one["images"] == 90
    assert one["scores"]


def test_messages_of_a_recipe_go_to_standard_error(tmp_path, monkeypatch, capsys):
    from pcd_hub.cli.commands import RECIPES

    def recipe(arguments):
        print("a message")
        return {"arguments": arguments}

    monkeypatch.setitem(RECIPES, "probe", RECIPES["probe"]._replace(load=lambda: recipe))
    cli.main(["probe", "--json", "data"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"arguments": ["data"]}
    assert captured.err == "a message\n"
