"""Each recipe is a short script that starts from a clone, in any folder."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
NAMES = [path.stem for path in RECIPES if path.stem != "__init__"]
OPTIONS = {"compare": "--into", "lab": "--output-dir"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_starts_by_itself(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPES[0].with_name(f"{name}.py")), run_name="__main__")
    assert ended.value.code == 0
    assert OPTIONS.get(name, "--run.output-dir") in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_short_and_only_calls_the_package(name):
    text = RECIPES[0].with_name(f"{name}.py").read_text()
    imported = {
        module
        for node in ast.walk(ast.parse(text))
        for module in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert imported
    assert all(module.startswith("pcd_hub.") for module in imported)
    assert len(text.splitlines()) < 80
    assert f"recipes/{name}.py" in (ast.get_docstring(ast.parse(text)) or ""), "its command"
