"""Commands that need no torch do not import it; all end with the documented exit codes."""

import contextlib
import os
import shlex
import subprocess
import sys

import pytest

from pcd_hub import cli
from pcd_hub.cli import parser as parsers
from pcd_hub.cli.commands import COMMANDS, RECIPES
from pcd_hub.files.standard_output import CLOSED_PIPE
from tests.cli.outcome import outcome


def command(*arguments, **variables):
    """Run ``python -m pcd_hub`` in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "pcd_hub", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list", "--help"], ["sho"]])
def test_what_only_prints_imports_neither_torch_nor_timm(arguments):
    done = command(*arguments, PYTHONPROFILEIMPORTTIME="1")
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pcd_hub.cli.parser" in modules
    assert not modules & {"torch", "timm", "numpy", "huggingface_hub"}


def test_list_imports_no_training_and_no_data_sets():
    done = command("list", PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout.startswith("WEIGHT")
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pcd_hub.weights.store" in modules
    heavy = {"accelerate", "datasets", "matplotlib", "cv2", "tyro", "pcd_hub.train", "pandas"}
    assert not modules & heavy


def test_other_processes_register_the_entries_and_have_the_public_names():
    code = "import pcd_hub, timm; assert pcd_hub.where; print(timm.is_model('resnet18_mhsa'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_command_has_the_public_names_when_it_runs():
    done = command("probe", "/no/such")
    assert done.returncode == 2
    assert "error: no folder /no/such" in done.stderr


def test_a_command_keeps_what_it_has_imported_and_collects_garbage():
    code = "import sys, gc; from pcd_hub import cli; sys.argv = ['pcd-hub', 'list']; cli.main()"
    end = "print(gc.isenabled(), gc.get_freeze_count() > 100_000, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {end}"], capture_output=True, text=True, check=True
    )
    assert done.stderr.split() == ["True", "True"]


def test_help_documents_the_exit_codes_and_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for name in (*COMMANDS, *RECIPES, "exit codes:", f"\n  {CLOSED_PIPE} "):
        assert name in out


@pytest.mark.parametrize(("name", "command"), COMMANDS.items())
def test_examples_of_the_help_can_be_parsed(name, command, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    out = capsys.readouterr().out
    for example in command.examples:
        assert f"  {example}\n" in out
        words = shlex.split(example.removeprefix('eval "$(').removesuffix(')"').partition(" > ")[0])
        assert words[0] == "pcd-hub"
        assert parsers.build_parser().parse_args(words[1:]).command == name


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_turns_the_colours_of_help_off(no_color, coloured):
    reader, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pcd_hub", "compare", "--help"],
        stdout=terminal,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TERM": "xterm",
            "NO_COLOR": no_color,
        },
    )
    os.close(terminal)
    out = b""
    with contextlib.suppress(OSError):  # how Linux reports the end
        while part := os.read(reader, 4096):
            out += part
    os.close(reader)
    assert process.wait() == 0
    assert b"--into" in out
    assert (b"\x1b[" in out) == coloured


def test_an_interrupt_is_one_line_and_code_130(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(
        COMMANDS, "list", COMMANDS["list"]._replace(load=lambda: {"list": interrupted})
    )
    code, _, err = outcome(capsys, "list")
    assert code == 130
    assert err == "interrupted; the same command starts again\n"
