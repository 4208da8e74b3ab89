"""Runs of the recipe: a teacher's folder with a head, the same after an interruption."""

import json
import shutil

import numpy as np
import pytest
import torch

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.errors import CheckpointError, ConfigError, DataError
from pcd_hub.method.heads import SpatialReLU, spatial_mean_error
from pcd_hub.models.teacher_folder import read_teacher_folder
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train import distill
from pcd_hub.train.teacher.cache.folders import list_caches, remove_cache
from pcd_hub.train.teacher.head import fit
from pcd_hub.train.teacher.head.features import PooledFeatures
from tests.train.conftest import check_that_places_are_tried, image_folder, trace
from tests.train.teacher.head.conftest import headless

IMAGES = torch.rand(2, 3, 64, 64)


def fitted(arguments, folder, *more):
    fit.main([*arguments, f"--output-dir={folder}", *more])
    return folder


@pytest.fixture(scope="module")
def whole(tiny_head, tmp_path_factory):
    """A run that was not interrupted."""
    return fitted(tiny_head, tmp_path_factory.mktemp("whole") / "run")


def test_the_head_of_the_folder_is_applied_by_the_spatial_adaptor(whole, resnet):
    source = f"local-dir:{whole / 'teacher'}"
    teacher, backbone = load_teacher(source, image_size=64), load_teacher(resnet, image_size=64)
    head = read_teacher_folder(whole / "teacher").head.eval()
    assert teacher.facts.head == "Linear-BatchNorm1d-ReLU-Linear-BatchNorm1d"
    assert teacher.facts.license == "mit"
    assert teacher.facts.mean == backbone.facts.mean
    maps = backbone(IMAGES)
    assert maps.shape == (2, 96, 2, 2)
    with torch.no_grad():
        pooled = head(maps.mean((2, 3)))
        one_location = teacher.head(maps.mean((2, 3), keepdim=True)).flatten(1)
        # Per location: the layers as matrices, and the ReLU's mask of the sum over all locations.
        first, norm, _, last, last_norm = head
        hidden = norm(first(maps.movedim(1, -1).flatten(0, 2))).view(2, 4, -1)
        masked = hidden * (hidden.sum(1, keepdim=True) > 0)
        expected = last_norm(last(masked.flatten(0, 1))).view(2, 2, 2, 16).movedim(-1, 1)
    torch.testing.assert_close(one_location, pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(teacher(IMAGES), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher(IMAGES).mean((2, 3)), pooled, rtol=1e-4, atol=1e-5)
    assert spatial_mean_error(head, teacher.head, torch.rand(2, 96, 7, 5)) < 1e-5
    assert isinstance(teacher.head[2], SpatialReLU)


def test_the_record_tells_where_backbone_and_head_come_from(whole, resnet):
    record = json.loads((whole / "record.json").read_text())
    stored = json.loads((whole / "teacher" / "teacher.json").read_text())
    assert stored == record | {"head": "Linear-BatchNorm1d-ReLU-Linear-BatchNorm1d"}
    sha256 = load_teacher(resnet, image_size=32).facts.sha256
    assert record["backbone"] == {"source": resnet, "sha256": sha256}
    training = record["head_training"]
    assert training["config"]["method"]["temperature"] == fit.HeadConfig().method.temperature
    assert training["config"]["teacher"]["image_size"] == 32
    assert (training["data"]["images"], training["data"]["held_out"]) == (70, 10)
    assert training["retrieval_top1"].keys() == {"images", "teacher", "head"}
    assert training["steps"] == 8
    assert "config" not in record, "the teacher's own training is not that of its head"


def test_the_folder_teaches(whole, tiny, tmp_path):
    folder = tmp_path / "student"
    source = f"--teacher.source=local-dir:{whole / 'teacher'}"
    distill.main([source, *tiny[1:], f"--run.output-dir={folder}", "--run.no-store"])
    losses = [line["loss"] for line in trace(folder)]
    assert len(losses) == 6
    teacher = json.loads((folder / "record.json").read_text())["teacher"]
    assert teacher["head"] == "Linear-BatchNorm1d-ReLU-Linear-BatchNorm1d"
    assert not any("states no mean" in warning for warning in teacher["warnings"])


def test_an_interrupted_run_continues_to_the_same_teacher(whole, tiny_head, tmp_path, capsys):
    """After the last checkpoint before the end, with features that are lost, and without it."""
    folder = tmp_path / "run"
    for lost in (["step_00000008.pt"], ["step_00000008.pt", "step_00000004.pt"]):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        for name in lost:
            (folder / "checkpoints" / name).unlink()
        (cache,) = list_caches(folder / "features")
        (cache.path / "checksums.bin").write_bytes(bytes(4 * 140))
        (folder / "teacher" / "teacher.safetensors").unlink()
        if len(lost) == 1:
            fit.main(["--resume", str(folder)])
        else:
            shutil.copytree(whole / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
            (folder / "checkpoints" / "step_00000008.pt").unlink()
            fitted(tiny_head, folder, "--run.resume")
        files = (run / "teacher" / "teacher.safetensors" for run in (whole, folder))
        assert len({file.read_bytes() for file in files}) == 1
        assert trace(folder) == trace(whole)
    assert "retrieval top-1 of 10 held-out images: " in capsys.readouterr().out


def test_a_run_that_was_stopped_before_its_first_step_continues(
    whole, tiny_head, tmp_path, monkeypatch
):
    folder = tmp_path / "run"

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "compute_features", stopped)
        with pytest.raises(KeyboardInterrupt):
            fitted(tiny_head, folder)
    with pytest.raises(CheckpointError, match="step 0 was written with another --method.dim"):
        fitted(tiny_head, folder, "--run.resume", "--method.dim=12")
    fitted(tiny_head, folder, "--run.resume")
    assert trace(folder) == trace(whole)


def test_runs_share_features_and_differ_by_seed(whole, tiny_head, tmp_path, monkeypatch):
    shared = f"--teacher.cache={tmp_path / 'cache'}"
    one = fitted(tiny_head, tmp_path / "one", shared)
    assert trace(one) == trace(whole)
    assert not (one / "features").exists()
    (cache,) = list_caches(tmp_path / "cache")
    assert (cache.teacher, cache.images, cache.complete) == ("test_resnet", 70, 1)

    def computed(*_, **__):
        raise AssertionError

    monkeypatch.setattr("pcd_hub.train.teacher.head.features._encode", computed)
    two = fitted(tiny_head, tmp_path / "two", shared, "--run.seed=1")
    assert trace(two) != trace(whole)
    assert remove_cache(tmp_path / "cache", "all") == [cache]


def test_the_pairs_of_a_batch_are_two_views_of_the_same_images(tmp_path):
    features = PooledFeatures(tmp_path, num_images=9, view_epochs=2, channels=1)
    values = torch.arange(36).view(18, 2).half()  # image 4, view 3 is 19
    rows = values.view(torch.uint8).numpy()
    features.store.write(np.arange(18), rows, replace=np.ones(18, bool))
    images = np.array([0, 2, 3, 5, 7, 8])
    plan = BatchPlan(global_batch_size=3, total_steps=40, seed=1)
    batches = list(fit.feature_batches(features, images, plan))
    assert len(batches) == 40
    pairs = [(int(a), int(b)) for batch in batches for a, b in zip(batch[0], batch[1], strict=True)]
    assert {a // 4 for a, _ in pairs} == set(images.tolist())
    assert all(a // 4 == b // 4 and a != b for a, b in pairs)
    assert {(a % 4, b % 4) for a, b in pairs} == {
        (a, b) for a in range(4) for b in range(4) if a != b
    }
    resumed = fit.feature_batches(
        features, images, BatchPlan(global_batch_size=3, total_steps=40, seed=1, start_step=30)
    )
    assert [batch[0].tolist() for batch in resumed] == [batch[0].tolist() for batch in batches[30:]]


def test_a_vit_is_stored_at_its_own_size(tiny_head, tmp_path):
    """Its position embeddings are resampled for the images of the head's training alone."""
    source = f"local-dir:{headless(tmp_path / 'vit', 'test_vit', size=160)}"
    layers = ["--method.num-layers=3", "--run.max-steps=1", "--data.image-size=48"]
    folder = fitted(tiny_head, tmp_path / "run", f"--teacher={source}", *layers)
    for size in (48, 160):
        own, stored = (
            load_teacher(each, image_size=size)
            for each in (source, f"local-dir:{folder / 'teacher'}")
        )
        images = torch.rand(1, 3, size, size)
        with torch.no_grad():
            expected = own(images)
            assert torch.equal(stored.grid((images - stored.mean) / stored.std), expected)
            assert stored.num_channels == 16
    assert stored.facts.head.count("ReLU") == 2


def test_views_may_be_smaller_than_the_teachers_images(tiny_head, tmp_path, capsys):
    folder = fitted(tiny_head, tmp_path / "run", "--teacher.image-size=64", "--run.max-steps=1")
    printed = capsys.readouterr().out
    assert f"--teacher local-dir:{folder / 'teacher'} --teacher.image-size 64" in printed


def test_a_few_broken_images_are_left_out_and_many_are_an_error(tiny_head, tmp_path):
    images = image_folder(tmp_path / "images", 120, 1)
    folder = fitted([str(images), *tiny_head[1:]], tmp_path / "run")
    data = json.loads((folder / "record.json").read_text())["head_training"]["data"]
    assert (data["images"], data["broken"]) == (120, 1)
    images = image_folder(tmp_path / "more", 120, 2)
    with pytest.raises(DataError, match=r"2 of 120 images cannot be read, expected at most 1%"):
        fitted([str(images), *tiny_head[1:]], tmp_path / "other")


def test_a_run_needs_places_to_write(tiny_head, tmp_path, monkeypatch):
    check_that_places_are_tried(fit.main, [*tiny_head, f"--output-dir={tmp_path / 'run'}"])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fit, "check_places", lambda *_, **__: None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(ConfigError, match=r"MB free, expected at least .*lower --data.view-epochs"):
        fitted([*tiny_head, "--data.view-epochs=60"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
