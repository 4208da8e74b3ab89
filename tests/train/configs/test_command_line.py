"""What is typed wrong is one line: the option, the value, and what is expected."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest

import pcd_hub
from pcd_hub.errors import ConfigError
from pcd_hub.train.configs import command_line
from pcd_hub.train.configs.command_line import override, parse, parse_given
from pcd_hub.train.configs.detection import DETECT
from pcd_hub.train.configs.distill import DISTILL
from pcd_hub.train.configs.probes import KNN, LINEAR_SEG, LOOK
from pcd_hub.train.configs.segmentation import FINETUNE_SEG
from pcd_hub.train.frozen import compare

COUNT = "expected an integer from 1 to 1000000000"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--optim.epochs=many", f"--optim.epochs many: {COUNT}, as 100"),
        ("--optim.epochs many", f"--optim.epochs many: {COUNT}, as 100"),
        ("--optim.epochs 3 4", f"--optim.epochs 3 4: {COUNT}, as 100"),
        ("--optim.epochs", f"--optim.epochs: {COUNT}, as 100"),
        ("--run.seed=1 --optim.epochs=1.5", f"--optim.epochs 1.5: {COUNT}, as 100"),
        ("--optim.name sgd", "--optim.name sgd: expected one of lars, adamw, muon, as lars"),
        (
            "--optim.clip-grad-norm=x",
            "--optim.clip-grad-norm x: expected a finite number > 0 or",
        ),
        (
            "--teacher.image-size -32",
            "--teacher.image-size -32: expected an integer from 8 to 16384 or 2 such values or",
        ),
        (
            "--data.image-size 96 160 3",
            "--data.image-size 96 160 3: expected an integer from 8 to 16384 or 2 such values, as",
        ),
        ("--data.image-size 96 4", "--data.image-size 96 4: expected an integer from 8"),
        ("--data.image-size", "--data.image-size: expected an integer from 8"),
        (
            "--run.resume True",
            "--run.resume True: expected no value; use --run.resume or ",
        ),
        ("--speed.compile=maybe", "--speed.compile maybe: expected True or False or None"),
        ("--run.name", "--run.name: expected text or None"),
        (f"--run.seed {'9' * 5000}", f"--run.seed {'9' * 80}...: expected an integer from 0"),
        ("many", "'many' belongs to no option; options start with --"),
        ("-x", "'-x' belongs to no option; options start with --"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_one_line(typed, message, capfd):
    with pytest.raises(ConfigError) as refused:
        parse(DISTILL, "quickstart", ["quickstart", *typed.split()])
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert "".join(capfd.readouterr()) == ""


def test_a_newline_in_a_value_leaves_one_line():
    with pytest.raises(ConfigError, match=r"^--optim.epochs 'a\\nb': expected [^\n]*$"):
        parse(DISTILL, "quickstart", ["--optim.epochs", "a\nb"])


@pytest.mark.parametrize(
    ("config", "typed", "meant"),
    [
        (DISTILL["pcd_r18"], "--optim.lr", "--optim.lr-per-256"),
        (DISTILL["pcd_r18"], "--lr", "--optim.lr-per-256"),
        (DISTILL["pcd_r18"], "--optim.learning-rate", "--optim.lr-per-256"),
        (DISTILL["pcd_r18"], "--batch_size", "--optim.global-batch-size"),
        (DISTILL["pcd_r18"], "--data.workers", "--data.num-workers"),
        (DISTILL["pcd_r18"], "--data.sorce", "--data.source"),
        (DISTILL["pcd_r18"], "--method.temp", "--method.temperature"),
        (DISTILL["pcd_r18"], "--output", "--run.output-dir"),
        (DISTILL["pcd_r18"], "--no-method.centre-targets", "--method.no-centre-targets"),
        (DISTILL["pcd_r18"], "--no-run.store", "--run.no-store"),
        (LINEAR_SEG["folder"], "--probe.learn", "--probe.lr"),
        (DETECT["small"], "--optim.learning-rate", "--optim.lr"),
    ],
)
def test_an_unknown_option_suggests_the_nearest_by_meaning(config, typed, meant):
    with pytest.raises(
        ConfigError, match=rf"no option '{typed.replace('_', '-')}'; did you mean '{meant}'\? "
    ):
        override(config, [typed, "3"])


@pytest.mark.parametrize("typed", ["--wibble", "--", "--1"])
def test_an_option_like_no_other_suggests_nothing(typed):
    with pytest.raises(ConfigError, match=rf"no option '{typed}' \(--help lists all\)"):
        override(DISTILL["quickstart"], [typed])


@pytest.mark.parametrize(
    "config",
    [
        *(named["folder"] for named in (KNN, LINEAR_SEG)),
        *(named["small"] for named in (DETECT, FINETUNE_SEG)),
        *(DISTILL["quickstart"], LOOK["quickstart"], compare.CompareConfig()),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_output_folder_has_one_name(config):
    asked = override(config, ["--run.output-dir", "a"])
    assert asked.run.output_dir == Path("a")
    with pytest.raises(ConfigError, match="no option '--output-dir'; did you mean '--run.output-"):
        override(config, ["--output_dir=a"])


def test_a_length_on_the_command_line_replaces_the_configurations():
    """quickstart trains 200 steps whatever its epochs."""
    assert parse(DISTILL, "quickstart", ["--optim.epochs=2"])[1].run.max_steps is None
    both = ["--optim.epochs=2", "--run.max-steps=7"]
    assert parse(DISTILL, "quickstart", both)[1].run.max_steps == 7
    assert parse(DISTILL, "quickstart", ["--run.seed=2"])[1].run.max_steps == 200
    assert parse(DISTILL, "quickstart", ["--run.hours=2"])[1].run.max_steps is None
    with pytest.raises(ConfigError, match=r"^--run.max-steps 7 and --run.hours 2.0 both set the"):
        parse(DISTILL, "quickstart", ["--run.hours=2", "--run.max-steps=7"])
    with pytest.raises(ConfigError, match=r"^--optim.epochs and --run.hours both set the length"):
        parse(DISTILL, "quickstart", ["--run.hours=2", "--optim.epochs=7"])


def test_the_version_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distill.py", "--version"])
    command_line.run_main(lambda arguments: pytest.fail("nothing runs"))
    assert capsys.readouterr().out == f"pcd_hub {pcd_hub.__version__}\n"


def test_help_shows_the_bounds(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(DISTILL, "quickstart", ["--help"])
    assert ended.value.code == 0
    assert "--optim.epochs INT>=1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    "config", [DISTILL["own_images"], DETECT["small"], FINETUNE_SEG["small"], LINEAR_SEG["folder"]]
)
def test_help_has_no_ragged_lines_at_80_columns(config):
    """Line breaks of an option's docstring stay, and 70 characters fit into a line of the help."""

    def text(of):
        parts = (getattr(of, field.name) for field in dataclasses.fields(of))
        for part in filter(dataclasses.is_dataclass, parts):
            yield from text(part)
        for base in type(of).__mro__[:-1]:
            for option in docstring_parser.parse_from_object(base).params:
                lines = (option.description or "").splitlines()
                yield from lines if len(lines) > 1 else ()

    found = list(text(config))
    assert len(found) > 10
    assert [line for line in found if len(line.strip()) > 70] == []


def test_a_mistake_ends_a_recipe_with_code_2_and_one_line():
    recipe = Path(__file__).parents[3] / "recipes" / "knn.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", recipe, "--k=x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: --k x: {COUNT}, as 20\n"


def test_the_fields_that_a_user_sets_are_known(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {epochs: 3}\n")
    typed = [
        f"--config={file}",
        "--data.image_size",
        "64",
        "--run.no-store",
        "--optim.lr-per-256=1",
    ]
    name, config, given = parse_given(DISTILL, "quickstart", ["pcd_r18", *typed])
    assert (name, config.data.image_size, config.run.store) == ("pcd_r18", 64, False)
    assert given == {"optim.epochs", "data.image_size", "run.store", "optim.lr_per_256"}
    assert parse_given(DISTILL, "quickstart", []).given == frozenset()
