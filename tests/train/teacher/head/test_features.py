"""Pooled features: their values, what is missing, and interruptions."""

import errno
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from pcd_hub.data.sources.open import open_source
from pcd_hub.data.views import byol_views
from pcd_hub.errors import CheckpointError, DataError, TeacherError
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train.signals import StoppedRun
from pcd_hub.train.teacher.cache.store import RecordStore
from pcd_hub.train.teacher.head import features as module
from pcd_hub.train.teacher.head.features import PooledFeatures, compute_features

NUM_IMAGES, VIEW_EPOCHS = 20, 2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty images of noise, of which number 3 is broken."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.png")
    (folder / "03.png").write_bytes(b"<html>")
    return open_source(str(folder))


@pytest.fixture(scope="module")
def teacher(resnet):
    return load_teacher(resnet, image_size=32)


@pytest.fixture
def compute(images, teacher, tmp_path):
    """Return a function that computes all features in a folder, and returns them."""

    def compute(name: str = "features", *, teacher: nn.Module = teacher) -> PooledFeatures:
        found = PooledFeatures(
            tmp_path / name, num_images=NUM_IMAGES, view_epochs=VIEW_EPOCHS, channels=96
        )
        run = {"accelerator": Accelerator(cpu=True), "run_folder": tmp_path, "num_workers": 0}
        compute.broken = compute_features(found, teacher, images, byol_views(32, seed=0), **run)
        return found

    return compute


def raw(features: PooledFeatures) -> np.ndarray:
    return features.store.read(np.arange(len(features.store)))[0]


def test_features_are_the_means_of_the_teachers_maps_of_each_view(compute, images, teacher):
    features = compute()
    assert features.num_views == 4
    for image, view in ((0, 0), (0, 3), (7, 1), (19, 2)):
        pair = byol_views(32, seed=0)(images[image], epoch=view // 2, index=image)
        expected = teacher(pair[view % 2][None] / 255).mean((2, 3))
        found = features.of(np.array([image]), np.array([view]))
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_a_broken_image_has_no_features_and_is_named(compute):
    features = compute()
    assert len(compute.broken) == 1
    assert "03.png: " in compute.broken[0]
    assert features.complete_images().tolist() == [n for n in range(NUM_IMAGES) if n != 3]
    with pytest.raises(DataError, match="1 records are damaged; resume the run, which computes"):
        features.of(np.array([3]), np.array([0]))


def test_only_what_is_missing_is_computed_with_the_same_result(compute, monkeypatch):
    """A record that is missing or damaged is computed in the batch of the first time."""
    monkeypatch.setattr(module, "PAIRS_PER_BATCH", 10)
    features = compute()
    whole = raw(features)
    with (features.folder / "records.bin").open("r+b") as file:
        file.seek(25 * features.store.record_bytes)
        file.write(b"\xff" * 8)
    write, written = RecordStore.write, []

    def recorded(self, slots, rows, *, replace):
        written.append(slots.tolist())
        write(self, slots, rows, replace=replace)

    monkeypatch.setattr(RecordStore, "write", recorded)
    assert np.array_equal(raw(compute()), whole)
    of_the_broken_image = [0, 1, 2, 3, 4, 5, 8, 9]
    assert written == [of_the_broken_image, list(range(20, 30))]


def test_a_signal_keeps_complete_batches(compute, monkeypatch):
    monkeypatch.setattr(module, "PAIRS_PER_BATCH", 10)
    whole = raw(compute())
    write = RecordStore.write

    def interrupted(self, slots, rows, *, replace):
        write(self, slots, rows, replace=replace)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RecordStore, "write", interrupted)
    with pytest.raises(StoppedRun) as stopped:
        compute("again")
    monkeypatch.setattr(RecordStore, "write", write)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert str(stopped.value).startswith(
        "stopped by SIGTERM; the features of 8 pairs of views are saved; continue with the same "
        "command and --run.resume --run.output-dir "
    )
    assert np.array_equal(raw(compute("again")), whole)


def test_a_full_disk_is_an_error_in_one_line(compute, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordStore, "write", full)
    with pytest.raises(CheckpointError, match=r"cannot write .* \(No space .*resume the run"):
        compute()


def test_features_beyond_float16_are_refused(compute, teacher):
    class Large(nn.Module):
        mean, facts = teacher.mean, teacher.facts

        def forward(self, images):
            return 1e6 + images.new_zeros(len(images), 96, 1, 1)

    with pytest.raises(TeacherError, match="not finite in float16"):
        compute(teacher=Large())
