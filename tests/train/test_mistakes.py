"""Users' mistakes in a distillation: one line each, before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from pcd_hub.errors import ConfigError, DataError, PCDHubError, StudentError
from pcd_hub.train import distill
from pcd_hub.weights import store
from tests.train.conftest import run

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("--data.source=/no/such", DataError, "no folder /no/such"),
        (
            "--teacher.source=mocov3_r50:/no/such",
            PCDHubError,
            "no teacher file /no/such; download r-50-1000ep.pth.tar of MoCo v3's release, https",
        ),
        (
            "--student.arch=resnet81",
            StudentError,
            "no architecture 'resnet81'; did you mean 'resnet",
        ),
        ("--data.sorce=x", ConfigError, "no option '--data.sorce'; did you mean '--data.source'"),
        ("--run.name=resnet18", PCDHubError, "not a weight's name"),
        ("--run.name=resnet18.pcd", ConfigError, "names another architecture"),
        (
            "--optim.global-batch-size=65",
            ConfigError,
            "has 64 images to train on, fewer than one batch of 65; lower --optim.global",
        ),
        ("--run.max-steps=0", ConfigError, "--run.max-steps 0: expected an integer from 1 to"),
        (
            "--data.min-crop-area=0.9 --data.max-crop-area=0.2",
            ConfigError,
            "min-crop-area 0.9 is larger than",
        ),
        ("--data.source=scenes:-5", DataError, "scenes:-5: COUNT is 1 to"),
        ("--speed.precision=fp16", ConfigError, "--speed.precision fp16 needs a GPU; .* bf16$"),
        (
            "--student.arch=resnet18.pcd",
            ConfigError,
            "--student.arch resnet18.pcd: expected an architecture .*; use resnet18$",
        ),
        ("--run.resume", ConfigError, "contains no run"),
        ("--student.arch=coat_tiny --data.image-size=40", StudentError, "coat_tiny cannot take 40"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(tiny, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        run(tiny, tmp_path / "run", *change.split())
    assert not (tmp_path / "run").exists()
    assert not store.home().exists()


def test_an_unknown_configuration_suggests_the_nearest():
    with pytest.raises(
        ConfigError, match="no configuration and no images 'quickstrat'; did you mean 'quickstart'"
    ):
        distill.main(["quickstrat"])


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("--data.source=/no/such", 1, "error: no folder /no/such"),
        ("--optim.epochs=0", 2, "error: --optim.epochs 0: expected"),
    ],
)
def test_mistakes_print_one_line_and_exit_with_1_or_2(tmp_path, option, code, message):
    done = subprocess.run(
        [sys.executable, RECIPES / "distill.py", option],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == code
    assert done.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method.loss=similarity_kl"], "found 1 with --method.targets pixels on a 1 x 1"),
        (["--method.loss=similarity_kl", "--method.targets=pooled"], "--method.targets pooled"),
    ],
)
def test_similarities_need_two_locations(tiny, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run([*tiny, *options], tmp_path / "run")
    assert not (tmp_path / "run").exists()
