"""Several students in one pass equal as many separate runs, bit by bit."""

import json
import shutil

import pytest

from tests.train.students.conftest import ARCHITECTURES, assert_equal_runs, separate, together

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data.image-size=64", "--teacher.image-size=96", "--optim.accumulation-steps=2"],
        ["--teacher.image-size=match", "--data.image-size=64"],
        ["--method.loss=cosine_smooth_l1", "--method.views=cross"],
        ["--optim.head-only-share=0.5", "--optim.clip-grad-norm=1"],
    ],
    ids=["plain", "finer teacher", "sizes differ", "moments", "head only"],
)
def test_students_in_one_pass_equal_separate_runs(several, tmp_path, dropping, options):
    arguments = [*several, *options]
    assert_equal_runs(
        together(arguments, tmp_path / "together"), separate(arguments, tmp_path / "separate")
    )


def test_views_that_grow_are_shared(several, tmp_path, counted):
    """A teacher has a network for each size; a ViT takes one size only."""
    small = ["--data.early-image-size=32", "--data.early-share=0.5", "--teacher.image-size=96"]
    arguments = [*several, "--data.image-size=64", *small]
    architectures = ("test_resnet", "test_efficientnet")
    both = together(arguments, tmp_path / "together", architectures=architectures)
    assert counted == {"teacher": 6, "loader": 1}
    one = separate(arguments, tmp_path / "separate", architectures)
    assert_equal_runs(both, one, architectures)


@pytest.mark.parametrize("kept", ["teacher.cache", "data.resident"])
def test_students_share_what_a_run_keeps(several, tmp_path, dropping, kept):
    arguments = [*several, "--data.source=scenes:24"]  # three passes
    if kept == "data.resident":
        arguments.append("--data.resident=on")
    else:
        arguments += [f"--teacher.cache={tmp_path / 'cache'}", "--data.view-epochs=1"]
    both = together(arguments, tmp_path / "together")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert_equal_runs(both, separate(arguments, tmp_path / "separate"))


def test_images_are_read_and_taught_once(several, tmp_path, counted):
    folder = together(several, tmp_path / "run")
    assert counted == {"teacher": 6, "loader": 1}
    for architecture in ARCHITECTURES:
        config = json.loads((folder / architecture / "config.json").read_text())
        assert config["student"]["arch"] == architecture
        record = json.loads((folder / architecture / "record.json").read_text())
        assert record["name"] == f"{architecture}.pcd_quickstart"
        assert (folder / architecture / "export" / "README.md").is_file()
    config = json.loads((folder / "config.json").read_text())
    assert config["student"]["arch"] == "test_resnet,test_vit"
    assert config["run"]["max_steps"] == 6
    table = (folder / "students.md").read_text()
    assert "| test_vit.pcd_quickstart | 6 |" in table
    assert "[test_resnet/report.md](test_resnet/report.md)" in table
    assert "held-out loss" in table


def test_a_teacher_of_two_input_sizes_runs_for_each(several, tmp_path, counted, caplog):
    arguments = [*several, "--teacher.image-size=match", "--data.image-size=64"]
    with caplog.at_level("INFO", "pcd_hub"):
        together(arguments, tmp_path / "run")
    assert counted == {"teacher": 12, "loader": 1}
    assert "the teacher runs once for each size of its input: test_resnet" in caplog.text
