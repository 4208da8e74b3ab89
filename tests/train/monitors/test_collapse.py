"""What a healthy run never says, and what a dying one says at once."""

import logging

import pytest
import torch
from torch import nn

from pcd_hub.method.distiller import Distiller
from pcd_hub.method.queue import KeyQueue
from pcd_hub.train import distill, distill_parts
from pcd_hub.train.monitors.collapse import CollapseMonitor
from tests.train.conftest import trace


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, logger="pcd_hub")
    return lambda: [
        record.getMessage() for record in caplog.records if "step" in record.getMessage()
    ]


def health(pixels, queue=None, patience=3):
    distiller = Distiller(nn.Identity(), nn.Identity(), loss=torch.nn.functional.mse_loss)
    distiller.last_pixels = (pixels, alike(1.0))
    return distiller, CollapseMonitor(distiller, queue, patience=patience)


def alike(noise):
    """Pixels ``(4, 16, 5, 5)`` around one vector."""
    generator = torch.Generator().manual_seed(0)
    return 1.0 + noise * torch.randn(4, 16, 5, 5, generator=generator)


ONE_LINE = torch.linspace(-1, 1, 100).view(4, 1, 5, 5) * torch.linspace(-1, 2, 16).view(16, 1, 1)
"""Pixels that differ in their length and sign alone."""


def test_a_student_that_starts_all_alike_has_an_epoch_to_change(said):
    distiller, watched = health(alike(0.01))
    for step in range(3):
        watched.measure(step)
    assert not said()
    watched.measure(3)
    (only,) = said()
    assert only.startswith(
        "step 3: the student has collapsed: its feature vectors have a mean cosine of 0.99"
    )
    watched.measure(4)
    assert len(said()) == 1
    distiller.last_pixels = (alike(1.0), alike(1.0))
    assert watched.measure(5)["pixel_cosine"] < 0.9


@pytest.mark.parametrize("dead", [alike(0.01), ONE_LINE])
def test_a_student_that_was_alive_is_missed_at_once(said, dead):
    distiller, watched = health(alike(1.0), patience=100)
    before = watched.measure(0)["pixel_rank"]
    assert not said()
    distiller.last_pixels = (dead, alike(1.0))
    after = watched.measure(1)["pixel_rank"]
    assert before > 10
    (only,) = said()
    assert (
        f"effective rank of {after:.1f} (expected at least 0.25 of the teacher's {before:.1f}"
        in only
    )


def test_the_pixels_that_are_looked_at_are_from_the_whole_batch():
    _, watched = health(torch.cat([torch.ones(12, 16, 5, 5), -torch.ones(4, 16, 5, 5)]))
    assert watched.measure(0)["pixel_cosine"] == pytest.approx((0.75 - 0.25) ** 2, abs=0.01)


def test_a_rank_below_the_teachers_is_no_collapse(said):
    distiller, watched = health(torch.cat([alike(1.0)[:, :6], torch.zeros(4, 10, 5, 5)], 1))
    for step in range(9):
        assert 4 < watched.measure(step)["pixel_rank"] < 7
    assert not said()
    distiller.last_pixels = (alike(1.0)[:, :1], ONE_LINE)
    watched.measure(9)
    assert not said(), "the teacher's own pixels have a rank of 1"


@pytest.mark.parametrize("where", [0, 1])
def test_numbers_that_are_none_are_left_to_the_loss_watch(said, where):
    """Beside an accelerator it looks a step later; till then nothing may raise on one process."""
    distiller, watched = health(alike(1.0), KeyQueue(1000, 16))
    pixels = [alike(1.0), alike(1.0)]
    pixels[where] = pixels[where] * float("nan")
    distiller.last_pixels = tuple(pixels)
    assert watched.measure(0) == {}
    assert not said()


def test_a_queue_of_keys_that_are_all_alike_is_dead(said):
    queue = KeyQueue(1000, 16)
    _, watched = health(alike(1.0), queue)
    for step in range(8):
        watched.measure(step)
        queue.push(torch.ones(50, 16) + 1e-3 * torch.randn(50, 16))
    (only,) = said()
    assert "step 6: the key queue is degenerate: its keys have a mean cosine of 1.0000" in only


def test_a_queue_that_takes_nothing_is_dead(said):
    queue = KeyQueue(1000, 16)
    _, watched = health(alike(1.0), queue)
    watched.measure(0)
    queue.push(torch.randn(1, 16))
    watched.measure(1)
    assert not said()
    watched.measure(2)
    assert said() == ["step 2: the key queue received no new keys; please report this bug"]


def test_a_run_writes_what_it_sees_and_a_healthy_one_says_nothing(tiny, tmp_path, said):
    distill.main([*tiny, f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"])
    for line in trace(tmp_path / "run"):
        assert 2 < line["pixel_rank"] < 16
        assert 0 < line["pixel_cosine"] < 0.99
        assert 0 < line["key_cosine"] < 0.99
    assert not said()


def test_a_teacher_to_whom_all_images_are_one_is_named_within_an_epoch(
    tiny, tmp_path, said, monkeypatch
):
    load = distill_parts.load_matched_teacher

    def blind(*args, **kwargs):
        teacher = load(*args, **kwargs)
        see = teacher.forward
        monkeypatch.setattr(teacher, "forward", lambda images: torch.ones_like(see(images)))
        return teacher

    monkeypatch.setattr(distill_parts, "load_matched_teacher", blind)
    distill.main([*tiny, f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"])
    assert any(
        "the key queue is degenerate: its keys have a mean cosine" in line for line in said()
    )
