"""The closing table of a run: a linear probe of each backbone on held-out generated scenes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pcd_hub.data.scenes import CLASSES, render_scene
from pcd_hub.data.sources import SCENE_SIZE
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.progress import progress, progress_of
from pcd_hub.evaluate.segmentation import LabelledImages, LinearProbe, ProbeResult, StageFeatures
from pcd_hub.weights.record import Measurement

TRAIN_SEED, TEST_SEED = 1_000_001, 1_000_002
"""Series of scenes that no training uses by default."""

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


def labelled_scenes(seed: int, count: int) -> LabelledImages:
    """The first ``count`` scenes of a series."""
    indices = progress(range(count), "drawing scenes", total=count)
    scenes = [render_scene(seed, index, size=SCENE_SIZE) for index in indices]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return LabelledImages(
        images=images.permute(0, 3, 1, 2).contiguous(),
        masks=torch.from_numpy(np.stack([scene.mask for scene in scenes])),
    )


def scene_mosaics(count: int, *, tiles: int, size: int | None = None) -> Tensor:
    """Held-out scenes, ``tiles`` x ``tiles`` to an image: ``(count, 3, S, S)`` uint8.

    ``size`` is S; the scenes' own, side by side, if not given.
    """
    scenes = labelled_scenes(TEST_SEED, count * tiles**2).images[:]
    rows = scenes.unflatten(0, (count, tiles, tiles)).permute(0, 3, 1, 4, 2, 5)
    images = rows.flatten(4, 5).flatten(2, 3)
    if size is None:
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).byte()


def probe_backbones(
    backbones: Sequence[EvaluatedModel],
    *,
    subject: str,
    num_scenes: int,
    picture: Path,
    command: str,
) -> dict[str, Any]:
    """Probe each backbone on the same scenes, and return the record's entry.

    The table is printed and the picture written.
    """
    train, test = labelled_scenes(TRAIN_SEED, num_scenes), labelled_scenes(TEST_SEED, num_scenes)
    results = {
        backbone.name: LinearProbe(
            StageFeatures(backbone.model, mean=backbone.mean, std=backbone.std),
            train,
            test,
            num_classes=len(CLASSES),
            progress=progress_of(backbone.name),
        ).run()
        for backbone in backbones
    }
    _print_table(results, num_scenes)
    _draw(picture, test, results)
    measured = Measurement(
        task="linear segmentation probe",
        dataset=f"generated scenes, {len(CLASSES)} classes",
        metric="mean IoU",
        unit="%",
        images=num_scenes,
        seeds=1,
        protocol=f"BatchNorm (statistics of all training scenes) and one linear layer on the last "
        f"3 stages, a ViT's through its final norm, fitted on {num_scenes} scenes without "
        f"augmentation, measured on {num_scenes} others",
        command=command,
        subject=subject,
        means={label: round(100 * result.mean_iou, 2) for label, result in results.items()},
    )
    return dataclasses.asdict(measured)


def _print_table(results: Mapping[str, ProbeResult], num_scenes: int) -> None:
    width = max(map(len, results))
    print(f"\nlinear probe on {num_scenes} held-out scenes, {len(CLASSES)} classes")
    print(f"{'':{width}}  mean IoU  pixel accuracy")
    for label, result in results.items():
        print(
            f"{label:{width}}  {100 * result.mean_iou:7.1f}%  {100 * result.pixel_accuracy:13.1f}%"
        )


def _draw(
    path: Path, test: LabelledImages, results: Mapping[str, ProbeResult], count: int = 8
) -> None:
    """Rows: images, truth, then each backbone's prediction in the order of the table."""
    count = min(count, len(test.masks))
    rows = [
        test.images[range(count)].permute(0, 2, 3, 1).numpy(),
        _PALETTE[np.stack([test.masks[row].numpy() for row in range(count)])],
    ]
    rows += [_PALETTE[np.stack(result.predictions[:count])] for result in results.values()]
    save_tiles(path, np.stack(rows))


def save_tiles(path: Path, tiles: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
    """Write ``(rows, columns, height, width, 3)`` as one PNG."""
    rows, columns, height, width, _ = tiles.shape
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)


def save_views(path: Path, views: Tensor, count: int = 8) -> None:
    """Write the two views of the first images, one above the other: ``(B, 2, 3, S, S)`` uint8."""
    save_tiles(path, views[:count].permute(1, 0, 3, 4, 2).numpy())
