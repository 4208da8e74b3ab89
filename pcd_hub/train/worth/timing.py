"""Measure how long the fine-tunings of a comparison will take."""

import dataclasses
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pcd_hub.data.labelled.coco import CocoSplit
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.detection import detect
from pcd_hub.train.launch import start_accelerator
from pcd_hub.train.own_images.embedded import embedded
from pcd_hub.train.segmentation import finetune
from pcd_hub.train.worth.plan import Comparison

log = logging.getLogger("pcd_hub")

STEPS = 4
"""Training steps to measure; the first is left out, which prepares memory and workers."""
TEST_IMAGES = 4
"""Test images to measure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured seconds."""

    step: float
    test_image: float


def estimate_seconds(comparison: Comparison, left: dict[str, int]) -> float:
    """Measure a few steps of every model that still has runs, and return the seconds of all.

    Args:
        comparison: What is compared.
        left: Number of fine-tunings that are not done, by model.

    Raises:
        PCDHubError: If a model cannot be fine-tuned on these images.
    """
    num_test = _count(comparison.test)
    total = 0.0
    for label, count in left.items():
        if count:
            log.info("measure the time of a few steps of %s", label)
            speed = measure(comparison, comparison.models[label])
            total += count * (comparison.steps * speed.step + num_test * speed.test_image)
    return total


def measure(comparison: Comparison, model: str) -> Speed:
    """Train a model for a few steps and score a few images, in a folder that is removed."""
    with tempfile.TemporaryDirectory(prefix="pcd-hub-worth-") as scratch, embedded():
        folder = Path(scratch) / "run"
        fields = {
            "model": model,
            "run.max_steps": STEPS,
            "run.log_every_steps": 1,
            "run.checkpoint_every_steps": STEPS,
            "run.output_dir": folder,
            "run.trackers": (),
        }
        config = with_fields(comparison.config, fields)
        run = _segmentation if comparison.task == "segmentation" else _detection
        score = run(start_accelerator(), config)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        started = time.perf_counter()
        score()
        seconds = time.perf_counter() - started
    speed = statistics.median(line["images_per_s"] for line in lines[1:])
    images = min(TEST_IMAGES, _count(comparison.test))
    return Speed(
        step=config.optim.global_batch_size / max(speed, 1e-9), test_image=seconds / images
    )


def in_words(seconds: float) -> str:
    """Return a time in minutes or hours."""
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} minutes" if seconds >= 90 else "about a minute"
    return f"{seconds / 3600:.1f} hours"


def _segmentation(accelerator: Accelerator, config: Any) -> Callable[[], object]:
    run = finetune.prepare(accelerator, config, "timing")
    finetune.train(run)
    run.test_set = run.test_set.take(
        range(min(TEST_IMAGES, len(run.test_set))), name=run.test_set.name
    )
    return lambda: finetune.count_pixels(run)


def _detection(accelerator: Accelerator, config: Any) -> Callable[[], object]:
    run = detect.prepare(accelerator, config, "timing")
    detect.train(run)
    run.val_split = dataclasses.replace(run.val_split, images=run.val_split.images[:TEST_IMAGES])
    return lambda: detect.detect_objects(run)


def _count(split: SegmentationSet | CocoSplit) -> int:
    return len(split) if isinstance(split, SegmentationSet) else len(split.images)
