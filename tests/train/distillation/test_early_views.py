"""Smaller views in the first steps: what a run trains on, resumes and refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.data.views import EarlyViews
from pcd_hub.errors import ConfigError, PCDHubError, StudentError
from pcd_hub.train import distill
from pcd_hub.train.configs.distill import DistillDataConfig
from pcd_hub.train.distillation.early_views import (
    early_steps,
    early_views,
    mean_over_steps,
    resolve_early_views,
)
from pcd_hub.train.held_out.open import open_held_out
from pcd_hub.train.run_folder.checkpoints import write_checkpoint
from tests.train.conftest import run, trace

pytestmark = pytest.mark.usefixtures("no_pictures")

EARLY = ["--data.early-image-size=32", "--data.early-share=0.5", "--data.image-size=64"]


def data(**values) -> DistillDataConfig:
    return DistillDataConfig(**({"image_size": 96} | values))


@pytest.mark.parametrize(
    ("share", "total_steps", "steps"), [(0.5, 7, 4), (0.25, 100, 25), (1.0, 9, 9), (0.0, 9, 0)]
)
def test_the_share_counts_the_steps_of_the_whole_run(share, total_steps, steps):
    settings = data(early_image_size=64, early_share=share)
    assert early_steps(settings, total_steps=total_steps) == steps
    expected = EarlyViews(image_size=64, steps=steps) if steps else None
    assert early_views(settings, total_steps=total_steps) == expected


def test_the_duration_of_a_step_is_the_mean_over_both_sizes():
    seconds = {96: 1.0, 64: 0.5}
    assert mean_over_steps(data(), seconds.__getitem__) == 1.0
    early = data(early_image_size=64, early_share=0.25)
    assert mean_over_steps(early, seconds.__getitem__) == 0.875


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"early_share": 0.5}, "--data.early-share 0.5 is set without --data.early-image-size"),
        ({"early_image_size": 64}, "--data.early-image-size 64 has no effect with --data.early-"),
        ({"early_image_size": 96, "early_share": 0.5}, "early-image-size 96: expected a size smal"),
        ({"early_image_size": (64, 128), "early_share": 0.5}, "64 128: expected a size smaller th"),
    ],
)
def test_a_size_that_is_not_smaller_or_has_no_share_is_rejected(values, message):
    with pytest.raises(ConfigError, match=message):
        resolve_early_views(data(**values))


def test_the_early_size_is_recorded_in_its_simplest_form():
    settings = data(early_image_size=(64, 64), early_share=0.5)
    assert resolve_early_views(settings).early_image_size == 64
    oblong = data(image_size=(64, 96), early_image_size=(32, 96), early_share=0.5)
    assert resolve_early_views(oblong) == oblong
    assert resolve_early_views(data()) == data()


@pytest.fixture
def sizes(monkeypatch) -> list[tuple[int, ...]]:
    """Return the heights and widths of views, and of both feature maps, of every step."""
    seen = []
    step = distill.training_step

    def recorded(d, distiller, optimizer, batches, **options):
        result = step(d, distiller, optimizer, batches, **options)
        student, teacher = d.distiller.last_feature_maps
        seen.append((*batches[0].views.shape[3:], *student.shape[2:], *teacher.shape[2:]))
        return result

    monkeypatch.setattr(distill, "training_step", recorded)
    return seen


@pytest.mark.parametrize("teacher_size", ["None", "128"])
def test_the_first_steps_have_small_views_for_student_and_teacher(
    tiny, tmp_path, sizes, teacher_size
):
    arguments = [*tiny, *EARLY, f"--teacher.image-size={teacher_size}", "--run.no-store"]
    folder = run(arguments, tmp_path / "run")
    assert sizes == [(32, 32, 1, 1, 1, 1)] * 3 + [(64, 64, 2, 2, 2, 2)] * 3
    config = json.loads((folder / "config.json").read_text())
    assert (config["data"]["early_image_size"], config["data"]["early_share"]) == (32, 0.5)
    assert config["teacher"]["image_size"] == (64 if teacher_size == "None" else 128)
    record = json.loads((folder / "record.json").read_text())
    assert record["model"]["image_size"] == 64
    assert (
        "two of 64 x 64 px for each image, of 32 px in the first 3 steps"
        in (folder / "report.md").read_text()
    )


def test_small_views_of_other_bands(tiny, tmp_path, sizes):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 4), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image, "RGBA").save(tmp_path / "images" / f"{number}.png")
    bands = ["--data.bands", "red", "green", "blue", "nir", "--run.no-store"]
    run([*tiny, *EARLY, f"--data.source={tmp_path / 'images'}", *bands], tmp_path / "run")
    assert [size[0] for size in sizes] == [32] * 3 + [64] * 3


@pytest.mark.parametrize("done", [2, 3, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumes_before_at_and_after_the_switch(tiny, tmp_path, done, num_workers):
    arguments = [*tiny, *EARLY, "--run.checkpoint-every-steps=1", "--run.no-store"]
    arguments += ["--run.keep-checkpoints=9", f"--data.num-workers={num_workers}"]
    folder = run(arguments, tmp_path / "run")
    whole = trace(folder)
    weights = torch.load(folder / "checkpoints" / "step_00000006.pt", weights_only=True)
    for step in range(done + 1, 7):
        (folder / "checkpoints" / f"step_{step:08d}.pt").unlink()
    run(arguments, folder, "--run.resume", f"--data.num-workers={2 - num_workers}")
    assert trace(folder) == whole
    again = torch.load(folder / "checkpoints" / "step_00000006.pt", weights_only=True)
    assert again["distiller"].keys() == weights["distiller"].keys()
    for name, value in weights["distiller"].items():
        assert torch.equal(again["distiller"][name], value), name


def test_an_early_share_of_none_changes_nothing(tiny, tmp_path):
    """As in a run of the release before."""
    plain = run([*tiny, "--run.no-store"], tmp_path / "plain")
    size = ["--data.early-image-size=None", "--data.early-share=0"]
    assert trace(run([*tiny, *size, "--run.no-store"], tmp_path / "off")) == trace(plain)


def test_another_early_size_is_another_run(tiny, tmp_path):
    folder = run([*tiny, *EARLY, "--run.no-store"], tmp_path / "run")
    (folder / "checkpoints" / "step_00000006.pt").unlink()
    with pytest.raises(PCDHubError, match=r"another --data.early-share \(0.5, now 0.25\)"):
        run([*tiny, *EARLY, "--data.early-share=0.25", "--run.no-store"], folder, "--run.resume")


def test_a_run_from_before_these_options_resumes(tiny, tmp_path):
    arguments = [*tiny, "--run.no-store"]
    folder = run(arguments, tmp_path / "run")
    whole = trace(folder)
    (folder / "checkpoints" / "step_00000006.pt").unlink()
    path = folder / "checkpoints" / "step_00000003.pt"
    checkpoint = torch.load(path, weights_only=True)
    for name in ("early_image_size", "early_share"):
        del checkpoint["config"]["data"][name]
    write_checkpoint(checkpoint, path)
    run(arguments, folder, "--run.resume")
    assert trace(folder) == whole


def test_a_student_of_one_size_is_rejected_before_the_first_step(tiny, tmp_path):
    arguments = [*tiny, *EARLY, "--student.arch=vit_tiny_patch16_224"]
    with pytest.raises(StudentError, match=r"--data.early-image-size 32: vit_tiny_patch16_224 bu"):
        run(arguments, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_over_locations_needs_two_of_them_in_small_views(tiny, tmp_path):
    arguments = [*tiny, *EARLY, "--method.loss=similarity_kl", "--method.temperature=0.07"]
    with pytest.raises(ConfigError, match=r"found 1 .* 1 x 1 feature map; .*early-image-size"):
        run(arguments, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_scores_have_the_final_size_and_no_plateau_ends_the_small_views(
    tiny, tmp_path, monkeypatch
):
    seen = []

    def opened(d, images):
        held_out = open_held_out(d, images)
        seen.append((tuple(images.shape[2:]), held_out._state.plateau_from))
        return held_out

    monkeypatch.setattr(distill, "open_held_out", opened)
    arguments = [*tiny, *EARLY, "--data.source=scenes:128", "--data.held-out=0.2"]
    folder = run([*arguments, "--run.measure-every-steps=1", "--run.no-store"], tmp_path / "run")
    assert seen == [((64, 64), 3)]
    assert len((folder / "held_out.jsonl").read_text().splitlines()) == 7
