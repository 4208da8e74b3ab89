"""Every code block of README, CONTRIBUTING and the site is run, in a small form."""

import ast
import functools
import importlib.util
import re
import tomllib

import pytest
import torch
import yaml

import pcd_hub
from pcd_hub.errors import ConfigError
from tests.docs.blocks import PAGES, Block, blocks_of, parse
from tests.docs.commands import run_block, small_options

SHOWN_ONLY = {"bibtex", "text"}
NUMBERS = {"R": "0", "N": "2", "NODES": "2"}
"""Placeholders of the launchers' commands."""


def run(block: Block, names: dict, hub) -> None:
    def replace(text: str) -> str:
        pinned = re.sub(r"(ORG/[\w.-]+)@COMMIT", lambda m: f"{m[1]}@{hub.head(m[1])}", text)
        return NUMBERS.get(text) or pinned

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
            if page.startswith("docs/use_it_in/"):
                check_models(block, reader)


def check_models(block: Block, names: dict) -> None:
    """Check that every model that a page names holds the kernels of the weight.

    A few steps of training change them by less than a tenth, random weights by more than all. Their
    scale may have the normalisation of the images in it.
    """
    kernels = [value / value.norm() for value in weight_tensors() if value.ndim == 4]
    for name, model in names.items():
        if isinstance(model, torch.nn.Module):
            own = [value.float() for value in model.state_dict().values()]
            for kernel in kernels:
                assert any(
                    kernel.shape == value.shape and (value / value.norm() - kernel).norm() < 0.1
                    for value in own
                ), f"{block.page}:{block.line}: {name} does not hold the weight"


@functools.cache
def weight_tensors() -> list[torch.Tensor]:
    return list(pcd_hub.create_model("resnet18.pcd").state_dict().values())


@pytest.mark.parametrize("page", ["detectors", "segmenters", "runtimes"])
def test_a_framework_takes_the_weight_in_five_lines(page):
    for block in blocks_of(f"docs/use_it_in/{page}.md"):
        if block.language == "python":
            assert len(ast.parse(block.code).body) <= 5, block
        elif block.language == "yaml":
            assert len(block.code.splitlines()) <= 5, block


def missing(block: Block) -> list[str]:
    """Return the packages that a block needs and that are not here."""
    words = set(re.findall(r"\w+", re.sub(r"#.*", "", block.code)))
    packages = {"segmentation_models_pytorch", "transformers"}
    packages |= {"kornia", "lightning", "torchgeo", "ultralytics"}
    needed = words & packages if block.language == "python" else set()
    needed |= {"tifffile"} & set(re.findall(r"\w+", block.given))
    if words & {"onnx", "onnxruntime"}:
        needed |= {"onnx", "onnxruntime", "onnxscript"}
    needed |= words & {"executorch"}
    return [name for name in sorted(needed) if not importlib.util.find_spec(name)]


def test_blocks_that_are_not_run_have_a_reason_and_are_few():
    found = [
        (block.page, block.code.split()[0], block.not_run)
        for page in PAGES
        for block in blocks_of(page)
        if block.not_run
    ]
    assert found == [
        ("docs/how-to/benchmark.md", "pcd-hub", "downloads 1.5 GB"),
        ("docs/how-to/benchmark.md", "pcd-hub", "downloads 94 MB"),
        ("docs/releasing.md", "python", "installs a wheel into an environment of its own"),
        ("docs/releasing.md", "sigstore", "needs the network and an identity"),
        ("docs/releasing.md", "sigstore", "needs a signed release"),
    ]


@pytest.mark.parametrize(
    "command",
    [
        "pcd-hub distill photos --hour 2",
        "pcd-hub export resnet18.pcd --to torchvision",
        "pcd-hub lst",
        "python recipes/knn.py --data.sources LABELLED",
        "python scripts/gpu_check.py --output-dirs OUT",
        "accelerate launch --multi_gpus recipes/distill.py pcd_r18",
        "torchrun --standalone --nproc_per_node 2 recipes/distil.py",
        'pip install "pcd_hub[training]"',
        "ruff check pcd_hub",
        "curl https://example.org",
    ],
)
def test_a_wrong_command_on_a_page_is_found(command, readers_folder, capsys):
    with pytest.raises((AssertionError, ConfigError, SystemExit, KeyError)) as refused:
        run_block(command, str)
    assert getattr(refused.value, "code", 1)


def test_the_length_of_a_run_is_replaced_and_the_rest_is_kept():
    assert small_options(["photos", "--hours", "2", "--student", "x"])[:3] == [
        "photos",
        "--student",
        "x",
    ]


def test_comments_before_a_block_are_read():
    text = "<!-- not run: needs a GPU -->\n```sh\nls\n```\n\n- a\n\n  ```python\n  x = 1\n  ```\n"
    first, second = parse(text, "page.md")
    assert (first.not_run, first.line, first.code) == ("needs a GPU", 3, "ls\n")
    assert (second.not_run, second.language, second.code) == ("", "python", "x = 1\n")
