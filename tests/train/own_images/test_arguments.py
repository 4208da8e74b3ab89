"""Words of ``pcd-hub distill``: a configuration, or images with derived settings."""

import re
import shlex
from pathlib import Path

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.distill import DERIVED
from pcd_hub.train.own_images.arguments import parse_distill


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "more").mkdir()
    return "photos"


def sources(config) -> tuple[str, ...]:
    found = config.data.source
    return (found,) if isinstance(found, str) else found


def test_without_words_it_is_the_quickstart():
    name, config, given = parse_distill([])
    assert (name, config.derive, given) == ("quickstart", False, frozenset())
    assert parse_distill(["--run.seed=3"]).name == "quickstart"


def test_images_select_own_images(photos):
    name, config, given = parse_distill([photos])
    assert (name, config.derive) == ("own_images", True)
    assert sources(config) == (photos,)
    assert given == {"data.source"}


@pytest.mark.parametrize("uri", ["hf:org/photos", "photos/*.jpg", "s3://bucket/photos"])
def test_globs_and_data_sets_are_images(uri):
    assert sources(parse_distill([uri]).config) == (uri,)


def test_images_may_follow_options_that_take_one_value(photos):
    name, config, given = parse_distill(["--hours", "0.5", "--output-dir=x", photos])
    assert (name, config.run.hours, sources(config)) == ("own_images", 0.5, (photos,))
    assert given == {"data.source", "run.hours", "run.output_dir"}


def test_short_options_set_teacher_student_and_folder(photos):
    config = parse_distill(
        [photos, "--teacher", "quickstart", "--student=resnet34", "--output-dir", "out"]
    ).config
    assert config.teacher.source == "quickstart"
    assert config.student.arch == "resnet34"
    assert str(config.run.output_dir) == "out"


def test_a_configuration_may_be_given_images(photos):
    name, config, _ = parse_distill(["pcd_r18", photos, "--optim.epochs", "3"])
    assert (name, config.derive, config.optim.epochs) == ("pcd_r18", False, 3)
    assert sources(config) == (photos,)


def test_a_configuration_wins_over_a_folder_of_its_name(photos, tmp_path, caplog):
    (tmp_path / "quickstart").mkdir()
    assert parse_distill(["quickstart"]).name == "quickstart"
    assert "for the folder write ./quickstart" in caplog.text
    assert sources(parse_distill(["./quickstart"]).config) == ("./quickstart",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["quickstrat"],
            "no configuration and no images 'quickstrat'; did you mean 'quickstart'?; expected one",
        ),
        (
            ["fotos/"],
            "no images 'fotos/'; did you mean 'photos'?; expected a folder, a file, a glob",
        ),
        (["photos", "moer"], "no images 'moer'; did you mean 'more'?; expected a folder"),
        (["mine.yaml"], "no configuration and no images 'mine.yaml'; for a file of settings use"),
        (
            ["photos", "--data.source", "more"],
            "images are given twice: photos and --data.source; name all of them in one place",
        ),
    ],
)
def test_a_word_that_is_neither_is_one_line(photos, words, message):
    with pytest.raises(ConfigError) as refused:
        parse_distill(words)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_help_explains_words_and_short_options(capsys):
    with pytest.raises(SystemExit):
        parse_distill(["--help"])
    shown = capsys.readouterr().out
    assert "pcd-hub distill photos --hours 2" in shown
    assert "--hours, --teacher, --student, --output-dir, --probe-data: short for" in shown


def help_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_distill([*arguments, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_without_words_is_that_of_own_images_and_names_what_is_derived(capsys):
    said = help_of(capsys)
    assert "--teacher.source STR" in said
    assert "(default: auto)" in said, "the teacher of own_images"
    derived = said.partition("these options are derived unless given")[2].partition("╭")[0]
    assert all(field in derived for field in DERIVED)
    assert "derived unless given" not in help_of(capsys, "quickstart")


def test_examples_of_the_help_can_be_parsed(photos, capsys):
    (run := Path("runs/own_images")).mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        parse_distill(["--help"])
    lines = capsys.readouterr().out.partition("Examples:")[2].splitlines()
    examples = [line.strip() for line in lines if line.startswith("  pcd-hub distill")]
    assert len(examples) >= 6
    for example in examples:
        command = re.split(r"  +", example)[0]
        assert parse_distill(shlex.split(command)[2:])
