import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.errors import ConfigError, DataError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train import linear_classification as linear_cls
from pcd_hub.train.configs.linear_classification import LINEAR_CLS, epoch_schedule
from tests.train.conftest import (
    check_that_a_lost_end_is_said,
    check_that_places_are_tried,
    trace,
)

TINY = [
    "small",
    "--model=random:test_resnet",
    "--data.image-size=32",
    "--data.num-workers=0",
    "--optim.global-batch-size=4",
    "--optim.lr-per-256=30",
    "--run.max-steps=12",
    "--run.log-every-steps=1",
    "--run.checkpoint-every-steps=6",
]


@pytest.fixture
def data(tmp_path) -> str:
    """Two classes by colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        for colour, channel in (("red", 0), ("blue", 2)):
            for number in range(count):
                pixels = rng.integers(0, 90, (40, 48, 3))
                pixels[..., channel] += 150
                path = tmp_path / "colours" / split / colour / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return f"--data.source={tmp_path / 'colours'}"


def rates(name: str, epochs: tuple[int, ...]) -> list[float]:
    schedule = epoch_schedule(LINEAR_CLS[name].optim, num_images=1_281_167, max_steps=None)
    per_epoch = schedule.steps // schedule.epochs
    return [schedule.learning_rate(epoch * per_epoch) for epoch in epochs]


def test_the_learning_rates_are_those_of_moco():
    assert rates("imagenet_mocov3", (0, 45, 89)) == pytest.approx([0.4, 0.2, 0.4 * 3.046e-4], 1e-3)
    assert rates("imagenet_mocov2", (0, 59, 60, 80)) == pytest.approx([30, 30, 3, 0.3])
    schedule = epoch_schedule(LINEAR_CLS["imagenet_mocov3"].optim, num_images=4096, max_steps=90)
    assert schedule.learning_rate(44) > schedule.learning_rate(45) == pytest.approx(0.2)


def test_it_learns_and_a_resumed_run_is_the_same_run(data, tmp_path, passes, capsys):
    folder = tmp_path / "run"
    arguments = [*TINY, data, f"--run.output-dir={folder}"]
    check_that_places_are_tried(linear_cls.main, arguments)
    linear_cls.main(arguments)
    assert passes == ["test images"]
    evaluation, whole = Evaluation.load(folder), trace(folder)
    assert evaluation.table() in capsys.readouterr().out
    assert evaluation.scores == {"random:test_resnet": {"top-1": (100.0,)}}
    assert (evaluation.dataset, evaluation.images) == ("colours/val", 10)
    assert "colours/train (16 images) for 12 steps of 4 (10 epochs" in evaluation.protocol
    assert whole[0]["loss"] == pytest.approx(np.log(2), abs=0.1), "both classes start alike"
    last = folder / "checkpoints" / "step_00000012.pt"
    weights = torch.load(last, weights_only=True)["network"]
    assert set(weights) == {"weight", "bias"}, "nothing of the backbone is trained"
    check_that_a_lost_end_is_said(
        linear_cls.main, arguments, "pcd_hub.evaluate.results.Evaluation.save"
    )
    last.unlink()
    linear_cls.main([*arguments, "--run.resume"])
    assert trace(folder) == whole
    again = torch.load(last, weights_only=True)["network"]
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--data.source="], ConfigError, "name the images: --data.source DIR"),
        (["--data.test-split=train"], ConfigError, "--data.test-split train is the training split"),
        (["--data.test-split=test"], DataError, "test; .* has train, val"),
        (["--optim.global-batch-size=17"], ConfigError, "has 16 images, fewer than one batch"),
    ],
)
def test_mistakes_are_found_before_the_folder_is_made(data, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        linear_cls.main([*TINY, data, *arguments, f"--run.output-dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
