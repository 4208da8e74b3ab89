"""Warnings of a collapsed student or a degenerate queue, and none for a healthy run."""

import logging

import pytest
import torch
from torch import nn

from pcd_hub.method.distiller import Distiller
from pcd_hub.method.queue import KeyQueue
from pcd_hub.train import distill
from pcd_hub.train.monitors.collapse import CollapseMonitor
from pcd_hub.train.teacher import loading
from tests.train.conftest import trace


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="pcd_hub")
    return lambda: [
        record.getMessage() for record in caplog.records if "step" in record.getMessage()
    ]


def monitored(pixels, queue=None, patience=3):
    distiller = Distiller(nn.Identity(), nn.Identity(), loss=torch.nn.functional.mse_loss)
    distiller.last_feature_maps = (pixels, similar(1.0))
    return distiller, CollapseMonitor(distiller, queue, patience=patience)


def similar(noise):
    """Return a feature map ``(4, 16, 5, 5)`` around one vector."""
    generator = torch.Generator().manual_seed(0)
    return 1.0 + noise * torch.randn(4, 16, 5, 5, generator=generator)


ONE_LINE = torch.linspace(-1, 1, 100).view(4, 1, 5, 5) * torch.linspace(-1, 2, 16).view(16, 1, 1)
"""Feature vectors that differ only in length and sign."""


def test_near_identical_vectors_at_the_start_have_an_epoch_to_change(warnings):
    distiller, monitor = monitored(similar(0.01))
    for step in range(3):
        monitor.measure(step)
    assert not warnings()
    monitor.measure(3)
    (warning,) = warnings()
    assert warning.startswith(
        "step 3: the student has collapsed: its feature vectors have a mean cosine of 0.99"
    )
    monitor.measure(4)
    assert len(warnings()) == 1
    distiller.last_feature_maps = (similar(1.0), similar(1.0))
    assert monitor.measure(5)["pixel_cosine"] < 0.9


@pytest.mark.parametrize("dead", [similar(0.01), ONE_LINE])
def test_a_healthy_student_that_collapses_is_reported_at_once(warnings, dead):
    distiller, monitor = monitored(similar(1.0), patience=100)
    before = monitor.measure(0)["pixel_rank"]
    assert not warnings()
    distiller.last_feature_maps = (dead, similar(1.0))
    after = monitor.measure(1)["pixel_rank"]
    assert before > 10
    (warning,) = warnings()
    assert (
        f"effective rank of {after:.1f} (expected at least 0.25 of the teacher's {before:.1f}"
        in warning
    )


def test_the_sample_is_from_the_whole_batch():
    _, monitor = monitored(torch.cat([torch.ones(12, 16, 5, 5), -torch.ones(4, 16, 5, 5)]))
    assert monitor.measure(0)["pixel_cosine"] == pytest.approx((0.75 - 0.25) ** 2, abs=0.01)


def test_a_rank_below_the_teachers_is_no_collapse(warnings):
    distiller, monitor = monitored(torch.cat([similar(1.0)[:, :6], torch.zeros(4, 10, 5, 5)], 1))
    for step in range(9):
        assert 4 < monitor.measure(step)["pixel_rank"] < 7
    assert not warnings()
    distiller.last_feature_maps = (similar(1.0)[:, :1], ONE_LINE)
    monitor.measure(9)
    assert not warnings(), "the teacher's own features have a rank of 1"


@pytest.mark.parametrize("where", [0, 1])
def test_values_that_are_not_finite_are_left_to_the_loss_monitor(warnings, where):
    """On an accelerator it checks one step later; until then no single process may raise."""
    distiller, monitor = monitored(similar(1.0), KeyQueue(1000, 16))
    pixels = [similar(1.0), similar(1.0)]
    pixels[where] = pixels[where] * float("nan")
    distiller.last_feature_maps = tuple(pixels)
    assert monitor.measure(0) == {}
    assert not warnings()


def test_a_queue_of_near_identical_keys_is_reported(warnings):
    queue = KeyQueue(1000, 16)
    _, monitor = monitored(similar(1.0), queue)
    for step in range(8):
        monitor.measure(step)
        queue.push(torch.ones(50, 16) + 1e-3 * torch.randn(50, 16))
    (warning,) = warnings()
    assert "step 6: the key queue is degenerate: its keys have a mean cosine of 1.0000" in warning


def test_a_queue_without_new_keys_is_reported(warnings):
    queue = KeyQueue(1000, 16)
    _, monitor = monitored(similar(1.0), queue)
    monitor.measure(0)
    queue.push(torch.randn(1, 16))
    monitor.measure(1)
    assert not warnings()
    monitor.measure(2)
    assert warnings() == ["step 2: the key queue received no new keys; please report this bug"]


def test_a_run_logs_the_metrics_and_a_healthy_one_has_no_warning(tiny, tmp_path, warnings):
    distill.main([*tiny, f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"])
    for line in trace(tmp_path / "run"):
        assert 2 < line["pixel_rank"] < 16
        assert 0 < line["pixel_cosine"] < 0.99
        assert 0 < line["key_cosine"] < 0.99
    assert not warnings()


def test_a_teacher_that_maps_all_images_to_one_vector_is_reported(
    tiny, tmp_path, warnings, monkeypatch
):
    load = loading.load_matched_teacher

    def blind(*args, **kwargs):
        teacher = load(*args, **kwargs)
        see = teacher.forward
        monkeypatch.setattr(teacher, "forward", lambda images: torch.ones_like(see(images)))
        return teacher

    monkeypatch.setattr(loading, "load_matched_teacher", blind)
    distill.main([*tiny, f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"])
    assert any(
        "the key queue is degenerate: its keys have a mean cosine" in line for line in warnings()
    )
