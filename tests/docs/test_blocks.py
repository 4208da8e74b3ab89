"""Every code block of README, CONTRIBUTING and the site is run, in a small form."""

import importlib.util
import re
import tomllib

import pytest
import yaml

import pcd_hub
from pcd_hub.train.own_images.python import distill
from pcd_hub.train.run_folder import provenance
from tests.docs.blocks import PAGES, Block, blocks_of, parse
from tests.docs.commands import SMALL, UnknownCommandError, run_block, small_options

SHOWN_ONLY = {"bibtex", "text"}
NUMBERS = {"R": "0", "N": "2", "NODES": "2"}
"""Placeholders of the launchers' commands."""


def small_distill(*images, hours=None, **arguments):
    """pcd_hub.distill as a page calls it, in seconds."""
    assert hours is None or hours > 0
    arguments.setdefault("teacher", "quickstart")
    groups = {name for name, value in arguments.items() if isinstance(value, dict)}
    small = {
        name: value
        for name, value in SMALL.items()
        if name not in arguments and name.partition(".")[0] not in groups
    }
    small = {"run.max_steps": 3} if "resume" in arguments else small
    arguments = {k: v for k, v in arguments.items() if "resume" not in arguments or k != "teacher"}
    return distill(*images, **{**small, **arguments})


@pytest.fixture
def reader(readers_folder, readers_hub, monkeypatch):
    """Return the names that a page's Python blocks share."""
    clean = {"pcd_hub": pcd_hub.__version__, "commit": "c" * 40, "dirty": False}
    monkeypatch.setattr(provenance, "_checkout_state", lambda: clean)
    monkeypatch.setattr(pcd_hub, "distill", small_distill, raising=False)
    return {"__name__": "page"}


def run(block: Block, names: dict, hub) -> None:
    def replace(text: str) -> str:
        return NUMBERS.get(text) or text.replace("@COMMIT", f"@{hub.head('ORG/resnet18.pcd')}")

    if block.given:
        exec(block.given, names)
    match block.language:
        case "python":
            lines = "\n" * (block.line - 1)
            exec(compile(lines + replace(block.code), block.page, "exec"), names)
        case "sh" | "bash" | "console":
            run_block(block.code, replace, only_read=block.page.startswith("recipes/"))
        case "yaml":
            assert yaml.safe_load(block.code)
        case "toml":
            assert tomllib.loads(block.code)
        case language:
            assert language in SHOWN_ONLY, f"{block.page}:{block.line}: a block of '{language}'"


@pytest.mark.filterwarnings("default")  # of the packages that a page uses
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)])
def test_the_blocks_of_a_page_run_in_order(page, reader, readers_hub):
    for block in blocks_of(page):
        if not block.not_run and not missing(block):
            run(block, reader, readers_hub)


def missing(block: Block) -> list[str]:
    """Return the packages of the extra ``integrations`` that a block needs and that are not here."""
    words = set(re.findall(r"\w+", re.sub(r"#.*", "", block.code)))
    packages = {"segmentation_models_pytorch", "transformers"}
    needed = words & packages if block.language == "python" else set()
    if words & {"onnx", "onnxruntime"}:
        needed |= {"onnx", "onnxruntime", "onnxscript"}
    return [name for name in sorted(needed) if not importlib.util.find_spec(name)]


def test_blocks_that_are_not_run_have_a_reason_and_are_few():
    found = {
        (block.page, block.code.split("\n")[0].split(" #")[0].strip()): block.not_run
        for page in PAGES
        for block in blocks_of(page)
        if block.not_run
    }
    assert found == {}
