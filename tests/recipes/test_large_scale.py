"""The commands of recipes/large_scale.md: launchers, scripts and options exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

import costs
import gpu_check
from cost_model import VIEW_EPOCHS
from pcd_hub.train.own_images.arguments import parse_distill

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "recipes" / "large_scale.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
SBATCH = sorted((ROOT / "recipes" / "slurm").glob("*.sbatch"))
KNOWN = {"job-name", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal"}
"""Options of sbatch (SLURM 24.05) that the scripts use."""


def words(command: str) -> list[str]:
    """Return the words without assignments before them; a rank is a number."""
    split = ["0" if word == "R" else word for word in shlex.split(command)]
    return split[next(i for i, word in enumerate(split) if not re.match(r"[A-Z_]+=", word)) :]


def recipe_arguments(command: str) -> list[str]:
    """Parse the launcher's part of a command, and return the recipe's arguments."""
    match words(command):
        case ["accelerate", "launch", *rest]:
            parsed = launch_command_parser().parse_args(rest)
        case ["torchrun", *rest]:
            parsed = get_args_parser().parse_args(rest)
        case ["pcd-hub", "distill", *rest]:
            return rest
        case ["sbatch", *rest]:
            script = next(i for i, word in enumerate(rest) if word.endswith(".sbatch"))
            assert (ROOT / rest[script]).is_file()
            assert rest[:script] == ["--nodes", "8", "--dependency=singleton"]
            return rest[script + 1 :]
        case _:
            raise AssertionError(command)
    assert parsed.module
    assert parsed.training_script == "pcd_hub.train.distill"
    return parsed.training_script_args


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_options_that_exist(command, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    arguments = recipe_arguments(command)
    monkeypatch.chdir(tmp_path)
    name, config, _ = parse_distill(arguments)
    assert name in {"pcd_r18", "quickstart", "own_images"}
    if "--teacher.cache" in arguments:
        assert config.data.view_epochs == VIEW_EPOCHS, "as the tables say"
        assert config.method.feature_maps == 1, "their records hold one map"
    if name == "pcd_r18":
        assert config.data.source[0].endswith("/imagenet/train")
        assert config.optim.global_batch_size == 1024, "as the tables say"
        assert config.method.queue_length == 65_536


def test_there_are_commands_for_every_way_to_start():
    ways = {words(command)[0] for command in COMMANDS}
    assert ways == {"accelerate", "torchrun", "sbatch", "pcd-hub"}
    assert len(COMMANDS) >= 8


def test_the_scripts_of_the_page_have_these_options(tmp_path):
    found = re.findall(r"`python scripts/(\w+)\.py ([^`]*)`", PAGE)
    assert {name for name, _ in found} == {"costs", "gpu_check"}
    for name, options in found:
        arguments = shlex.split(options)
        if name == "gpu_check":
            gpu_check.build_parser().parse_args(arguments)
        else:
            page = tmp_path / "page.md"
            page.write_text("")
            costs.main([str(page) if word.endswith(".md") else word for word in arguments])
            assert page.read_text()


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.stem)
def test_a_script_is_bash_with_options_of_sbatch(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    assert set(re.findall(r"^#SBATCH --([\w-]+)=", text, re.MULTILINE)) == KNOWN
    assert text.count("#SBATCH") == len(KNOWN)
    assert f"recipes/slurm/{path.name}" in text, "its command"
    assert f"slurm/{path.name}" in PAGE
