"""Shell commands of the pages, run in a small form or read by their own parsers."""

import contextlib
import functools
import importlib
import io
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator

import pytest
import torch.distributed.run
from accelerate.commands.launch import launch_command_parser

from pcd_hub import cli
from pcd_hub.train.configs.command_line import override
from pcd_hub.train.configs.probes import CompareConfig
from pcd_hub.train.frozen import feature_figures
from tests.docs.blocks import ROOT

SMALL = {
    "run.max_steps": 2,
    "optim.global_batch_size": 8,
    "data.image_size": 64,
    "data.num_workers": 0,
    "speed.precision": "fp32",
    "method.queue_length": 16,
    "probe_scenes": 0,
}
"""Fields that make a distillation take seconds."""

_SMALL_FINE_TUNING = ["--shares=100", "--seeds=1", "--budget=2", "--optim.global-batch-size=4"]
_SMALL_PROBE = ["--data.image-size=32", "--probe.steps=20", "--run.seeds", "0"]
_MODULES = {
    "distill": "distill",
    "pretrain": "contrast",
    "fit_head": "teacher.head.fit",
    "linear_seg": "frozen.segmentation_probe",
    "knn": "frozen.knn",
    "linear_cls": "linear_classification",
    "detect": "detection.detect",
    "finetune_seg": "segmentation.finetune",
    "look": "frozen.feature_figures",
}


class UnknownCommandError(AssertionError):
    """A command that is neither known here nor marked as not run."""


def run_block(code: str, replace: Callable[[str], str], *, only_read: bool = False) -> None:
    """Run or read every command of a block.

    Args:
        code: The block.
        replace: Fills a word's placeholders.
        only_read: Do not train or evaluate, only parse the options.
    """
    for words in _commands(code):
        command = [replace(word) for word in words]
        if not (only_read and _is_read(command)):
            _run(command)


def _commands(code: str) -> Iterator[list[str]]:
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield [word for word in words if word != "..."]


def _is_read(words: list[str]) -> bool:
    """Read the options of a command that trains or evaluates; return False for another."""
    match words:
        case ["pcd-hub", "distill", *arguments]:
            _read_recipe("distill", arguments)
        case ["pcd-hub", "probe", data, *arguments]:
            models = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
            options = arguments[len(models) :]
            _read_recipe("linear_seg", [f"--data.source={data}", "--models", *models, *options])
        case _:
            return False
    return True


def _run(words: list[str]) -> None:
    program, *arguments = words
    if re.fullmatch(r"[A-Z_]+=\S*", program):
        name, _, value = program.partition("=")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            _run(arguments)
    elif program in _PROGRAMS:
        _PROGRAMS[program](arguments)
    elif program in _CHECKS:
        _check_that_ci_runs(words)
    elif words not in _SHELL:
        raise UnknownCommandError(f"{words}: not known to tests/docs/commands.py")


def _pcd_hub(words: list[str]) -> None:
    match words:
        case ["distill", *arguments]:
            _distill(arguments)
        case ["compare", file] if file.endswith(".jsonl"):
            cli.main(words)
        case ["compare", *arguments]:
            override(CompareConfig(), arguments)
        case ["probe", *_]:
            cli.main([*words, *_SMALL_PROBE])
        case ["worth", *_]:
            cli.main([*words, *_SMALL_FINE_TUNING])
        case _:
            cli.main(words)


def _python(words: list[str]) -> None:
    match words:
        case ["recipes/compare.py", *arguments]:
            override(CompareConfig(), arguments)
        case ["-m", "pcd_hub.train.frozen.feature_figures", *arguments]:
            feature_figures.main([*arguments, "--data.image-size=64"])
        case ["-m", module, *arguments] if "--data.check" in arguments:
            importlib.import_module(module).main(arguments)
        case ["-m", module, *arguments]:
            _check_flags(module, arguments)
        case [script, *arguments] if script.startswith("recipes/"):
            _read_recipe(script.removeprefix("recipes/").removesuffix(".py"), arguments)
        case [script, *arguments]:
            assert (ROOT / script).exists(), script
            _check_flags(script, arguments)


def _accelerate(words: list[str]) -> None:
    assert words[0] == "launch"
    read = launch_command_parser().parse_args(words[1:])
    _read_launched(read.training_script, read.training_script_args, module=read.module)


def _torchrun(words: list[str]) -> None:
    read = torch.distributed.run.parse_args(words)
    _read_launched(read.training_script, read.training_script_args, module=read.module)


def _srun(words: list[str]) -> None:
    assert words[:2] == ["--ntasks-per-node", "1"]
    _run(words[2:])


def _sbatch(words: list[str]) -> None:
    assert words[0] == "--nodes"
    options = list(itertools.takewhile(lambda word: word.startswith("-"), words[2:]))
    script, *arguments = words[2 + len(options) :]
    assert (ROOT / script).exists(), script
    _read_recipe("distill", arguments)


def small_options(arguments: list[str]) -> list[str]:
    """Return a distillation's arguments, changed so that it takes seconds."""
    words = iter(arguments)
    kept = [
        word
        for word in words
        if not (word in {"--hours", "--run.hours", "--optim.epochs"} and next(words))
    ]
    small = {f"--{name.replace('_', '-')}": value for name, value in SMALL.items()}
    if "--resume" in kept:
        small = {"--run.max-steps": 3}
    elif not any(word.startswith("--teacher") for word in kept):
        small["--teacher.source"] = "quickstart"
    given = {word.partition("=")[0] for word in kept}
    return [*kept, *(f"{flag}={value}" for flag, value in small.items() if flag not in given)]


def _distill(arguments: list[str]) -> None:
    """Read the command as it is printed; then run it in a small form."""
    _print_config(functools.partial(cli.main, ["distill", *arguments, "--print-config"]))
    if not any("FILE" in word or "NAME" in word for word in arguments):
        cli.main(["distill", *small_options(arguments)])


def _print_config(main: Callable[[], object]) -> None:
    """Have a recipe parse its command line, and nothing more."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, ended.value.code
    assert "run:" in printed.getvalue()


def _read_recipe(name: str, arguments: list[str]) -> None:
    main = importlib.import_module(f"pcd_hub.train.{_MODULES[name]}").main
    _print_config(functools.partial(main, [*arguments, "--print-config"]))


def _read_launched(script: str, arguments: list[str], *, module: bool) -> None:
    if module:
        names = {f"pcd_hub.train.{module}": name for name, module in _MODULES.items()}
        return _read_recipe(names[script], arguments)
    assert (ROOT / script).exists(), script
    return _read_recipe(script.removeprefix("recipes/").removesuffix(".py"), arguments)


def _check_flags(command: str, arguments: list[str]) -> None:
    """Check a maintainers' command against its own help."""
    flags = [word for word in arguments if word.startswith("-")]
    subcommand = [word for word in arguments[:1] if re.fullmatch("[a-z]+", word)]
    shown = io.StringIO()
    run = runpy.run_path if command.endswith(".py") else runpy.run_module
    target = str(ROOT / command) if command.endswith(".py") else command
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setattr(sys, "argv", [command, *subcommand, "--help"])
        with pytest.raises(SystemExit) as ended:
            run(target, run_name="__main__")
    assert not ended.value.code, shown.getvalue()
    missing = [flag for flag in flags if not re.search(rf"{flag}\b", shown.getvalue())]
    assert not missing, f"{command} has no {missing}"


def _pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for target in words[1:]:
        if target in {"-e", *_RELEASE_TOOLS}:
            continue
        own = re.fullmatch(r"(pcd_hub|\.)(\[([\w,]+)\])?", target)
        assert own, f"{target}: expected this package"
        assert set((own[3] or "train").split(",")) <= extras.keys(), target


def _check_that_ci_runs(words: list[str]) -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    line = re.escape(" ".join(words)) + r"(\s|$)"
    assert re.search(rf"^([A-Z_\d]+=\S+ )?{line}", ci, re.MULTILINE), (
        f"{' '.join(words)} is not in .ci/run"
    )


_PROGRAMS = {
    "pcd-hub": _pcd_hub,
    "python": _python,
    "accelerate": _accelerate,
    "torchrun": _torchrun,
    "srun": _srun,
    "sbatch": _sbatch,
    "pip": _pip,
}
_CHECKS = {"ruff", "pyright", "lint-imports", "mkdocs", "pytest"}
_RELEASE_TOOLS = {"build", "hatchling", "cyclonedx-bom", "sigstore"}
_SHELL = (["python3", "-m", "venv", ".venv"], ["source", ".venv/bin/activate"])
