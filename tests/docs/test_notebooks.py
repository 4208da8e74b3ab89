"""The notebooks' cells run in order, in a small form."""

import ast
import json

import pytest

from tests.docs.blocks import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text())


def run_cell(code: str, names: dict, place: str) -> object:
    """Run a cell; return the value of its last expression, which a notebook shows."""
    tree = ast.parse(code, place)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, place, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), place, "eval"), names)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_cells_of_a_notebook_run_in_order(name, reader):
    if name == "publish_and_fetch.ipynb":
        reader["pcd_hub"].distill("photos", student="resnet18", hours=1)
    cells = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        shown = run_cell("".join(cell["source"]), reader, f"{name}, cell {number}")
        if hasattr(shown, "_repr_markdown_"):
            assert shown._repr_markdown_().startswith("# ")


def test_there_is_one_for_each_journey_and_each_is_on_the_site():
    assert NOTEBOOKS == ["distil_a_folder.ipynb", "publish_and_fetch.ipynb", "use_a_weight.ipynb"]
    listed = (FOLDER / "index.md").read_text()
    assert all(f"({name})" in listed for name in NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_without_outputs(name):
    text = (FOLDER / name).read_text()
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in notebook["cells"]:
        assert cell["source"]
        assert not cell.get("outputs"), "clear the outputs before you commit it"
        assert cell.get("execution_count") is None
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
