"""Short options stand for longer ones."""

import json

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.train.own_images.arguments import parse_distill
from pcd_hub.train.own_images.options import with_long_options
from pcd_hub.train.own_images.words import split_words


def test_short_options_stand_for_long_ones():
    typed = ["own_images", "--hours=2", "--probe-data", "labelled", "--hours", "4"]
    expected = ["own_images", "--run.hours=2", "--probe-data.source", "labelled"]
    expected += ["--run.hours", "4"]
    assert with_long_options(typed) == expected


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("typed", [["--resume", "RUN"], ["--resume=RUN"]])
def test_resume_stands_for_the_runs_configuration_and_folder(run, typed):
    typed = [argument.replace("RUN", str(run)) for argument in typed]
    found = with_long_options(["own_images", *typed, "--run.log_every_steps=3"])
    assert found == [
        f"--config={run / 'config.json'}",
        "--run.resume",
        f"--run.output-dir={run}",
        "own_images",
        "--run.log_every_steps=3",
    ]
    words, flags = split_words(found)
    assert words == ["own_images"]
    assert flags == [*found[:3], found[4]]


def test_a_resumption_names_its_run():
    for typed in (["--resume"], ["runs/own_images", "--resume="]):
        with pytest.raises(ConfigError, match="^--resume: expected the folder of a run after it"):
            with_long_options(typed)


def test_hours_are_added_to_a_run_that_is_resumed(run):
    for hours in ("--hours", "--run.hours"):
        assert with_long_options(["--resume", str(run), hours, "2"])[-2:] == [
            "--run.add-hours",
            "2",
        ]


def test_a_run_that_was_made_longer_keeps_that_length_unless_another_is_given(run):
    changes = [
        {"after_step": 5, "what": "--run.max-steps", "from": 5, "to": 7},
        {"after_step": 7, "what": "--run.max-steps", "from": 7, "to": 9},
        {"after_step": 7, "what": "--data.num-workers", "from": 1, "to": 0},
    ]
    (run / "changes.json").write_text(json.dumps(changes))
    assert "--run.max-steps=9" in with_long_options(["--resume", str(run)])
    for given in ("--hours=1", "--run.max-steps=20", "--optim.epochs=3"):
        found = with_long_options(["--resume", str(run), given])
        assert "--run.max-steps=9" not in found
    (run / "changes.json").write_text("{")
    assert "--run.max-steps" not in " ".join(with_long_options(["--resume", str(run)]))


def test_options_of_an_earlier_resumption_stay_unless_they_are_given_again(run):
    changes = [
        {"after_step": 5, "what": "--run.name", "from": None, "to": "pcd_a"},
        {"after_step": 6, "what": "--run.name", "from": "pcd_a", "to": "pcd_new"},
        {"after_step": 5, "what": "--run.store", "from": True, "to": False},
        {"after_step": 5, "what": "--run.trackers", "from": [], "to": ["tensorboard", "wandb"]},
        {"after_step": 5, "what": "--run.measure-every-steps", "from": 3, "to": None},
        {"after_step": 5, "what": "data", "from": "8 files", "to": "9 files"},
    ]
    (run / "changes.json").write_text(json.dumps(changes))
    (run / "config.json").write_text(json.dumps({"data": {"source": ["scenes:20"]}}))
    resume = ["--resume", str(run)]
    config = parse_distill(resume).config
    assert (config.run.name, config.run.store) == ("pcd_new", False)
    assert config.run.trackers == ("tensorboard", "wandb")
    assert config.run.measure_every_steps is None
    given = ["--run.name", "pcd_b", "--run.store", "--run.trackers", "tensorboard"]
    config = parse_distill([*resume, *given]).config
    assert (config.run.name, config.run.store) == ("pcd_b", True)
    assert config.run.trackers == ("tensorboard",)


def test_a_switch_takes_no_word_that_follows():
    for switch in ("--run.no-store", "--run.stop_on_plateau", "--derive"):
        assert split_words([switch, "photos", "--hours", "2"]) == (
            ["photos"],
            [switch, "--hours", "2"],
        )


def test_a_folder_without_a_run_is_one_line():
    with pytest.raises(ConfigError, match=r"^--resume .*: it contains no run; expected the folder"):
        with_long_options(["--resume", "/no/such"])
