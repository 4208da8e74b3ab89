"""Final table of a training run: a linear probe on generated scenes, with a figure."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.scene_probe import (
    TEST_SEED,
    TRAIN_SEED,
    labelled_scenes,
    probe_on_scenes,
    scene_measurement,
    scene_table,
)
from pcd_hub.evaluate.segmentation import LabelledImages, ProbeResult
from pcd_hub.report.png import save_tiles

_PALETTE = np.asarray(
    [
        (40, 40, 40),
        (230, 60, 60),
        (60, 200, 80),
        (70, 110, 240),
        (240, 210, 60),
        (200, 80, 220),
        (70, 210, 220),
        (245, 245, 245),
        (250, 130, 30),
        (130, 200, 130),
    ],
    np.uint8,
)


def probe_backbones(
    backbones: Sequence[EvaluatedModel],
    *,
    subject: str,
    num_scenes: int,
    picture: Path,
    command: str,
) -> dict[str, Any]:
    """Probe each backbone on the same scenes, print the table and draw the predictions.

    Args:
        backbones: The models, with unique names.
        subject: Name of the model whose record gets the table.
        num_scenes: Number of training and of test scenes.
        picture: PNG file of the figure.
        command: The command that reproduces the table.

    Returns:
        The table as an entry of a weight's record.
    """
    train, test = labelled_scenes(TRAIN_SEED, num_scenes), labelled_scenes(TEST_SEED, num_scenes)
    results = probe_on_scenes(backbones, train, test)
    print(f"\n{scene_table(results, num_scenes)}")
    save_scene_predictions(picture, test, results)
    measurement = scene_measurement(
        results, subject=subject, num_scenes=num_scenes, command=command
    )
    return dataclasses.asdict(measurement)


def save_scene_predictions(
    path: Path, test: LabelledImages, results: Mapping[str, ProbeResult], count: int = 8
) -> None:
    """Draw rows of scenes, their labels, and each model's predictions."""
    count = min(count, len(test.masks))
    rows = [
        test.images[range(count)].permute(0, 2, 3, 1).numpy(),
        _PALETTE[np.stack([test.masks[row].numpy() for row in range(count)])],
    ]
    rows += [_PALETTE[np.stack(result.predictions[:count])] for result in results.values()]
    save_tiles(path, np.stack(rows))
