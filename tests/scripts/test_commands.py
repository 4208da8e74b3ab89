"""Every command in scripts/ and tests/stress/ starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [str(path) for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text()]
MODULES = ["tests.stress.fuzz", "tests.stress.kill_campaign", "tests.stress.store_campaign"]

# One process imports the large libraries; each command then runs in a fork of it.
RUNNER = """
import gc, os, pathlib, runpy, sys
import timm, torch, pcd_hub.train.configs.command_line, pcd_hub.train.configs.distill
root, *commands = sys.argv[1:]
failed = []
gc.freeze()  # which the children would look through as they end
for command in commands:
    if (child := os.fork()) == 0:
        sys.argv = [command, "--help"]
        if command.endswith(".py"):
            sys.path[0] = str(pathlib.Path(command).parent)
            runpy.run_path(command, run_name="__main__")
        else:
            os.chdir(root)
            sys.path[0] = root
            runpy.run_module(command, run_name="__main__")
        sys.exit("the command did not exit")
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        failed.append(command)
sys.exit(f"failed: {failed}" if failed else 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_command_prints_its_help(tmp_path):
    """Scripts start from any folder, modules from the root of the repository."""
    commands = SCRIPTS + MODULES
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER, str(ROOT), *commands],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("usage: ") == len(commands)
