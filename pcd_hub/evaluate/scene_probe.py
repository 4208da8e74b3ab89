"""Linear segmentation probe on generated scenes that are not used for training."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from pcd_hub.data.scenes import CLASSES, render_scene
from pcd_hub.data.sources.open import SCENE_SIZE
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.progress import progress, progress_of
from pcd_hub.evaluate.segmentation import LabelledImages, LinearProbe, ProbeResult
from pcd_hub.evaluate.stage_features import StageFeatures
from pcd_hub.image_size import ImageSize, height_width
from pcd_hub.weights.record import Measurement

TRAIN_SEED, TEST_SEED = 1_000_001, 1_000_002
"""Seeds of the scenes; the default training images have different ones."""
PROTOCOL_VERSION = 1
"""Raise it with every change that may change scores under the same protocol sentence."""
_LABEL_STRIDE = 4
"""Rows and columns between two pixels of the training loss: the same expected loss as of all
pixels, and a fourth of the time."""


def labelled_scenes(seed: int, count: int) -> LabelledImages:
    """Render the first ``count`` scenes of a seed."""
    indices = progress(range(count), "drawing scenes", total=count)
    scenes = [render_scene(seed, index, size=SCENE_SIZE) for index in indices]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return LabelledImages(
        images=images.permute(0, 3, 1, 2).contiguous(),
        masks=torch.from_numpy(np.stack([scene.mask for scene in scenes])),
    )


def scene_mosaics(
    count: int, *, tiles: int, size: ImageSize | None = None
) -> UInt8[Tensor, "count 3 height width"]:
    """Render test scenes, ``tiles`` x ``tiles`` per image.

    Args:
        count: Number of images.
        tiles: Scenes per side of an image.
        size: Size of the images in pixels. Default: ``tiles`` times a scene's.
    """
    scenes = labelled_scenes(TEST_SEED, count * tiles**2).images[:]
    rows = scenes.unflatten(0, (count, tiles, tiles)).permute(0, 3, 1, 4, 2, 5)
    images = rows.flatten(4, 5).flatten(2, 3)
    if size is None:
        return images
    resized = F.interpolate(images.float(), height_width(size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).byte()


def probe_on_scenes(
    backbones: Sequence[EvaluatedModel], train: LabelledImages, test: LabelledImages
) -> dict[str, ProbeResult]:
    """Probe each backbone on the same scenes, and return the results by model name."""
    return {
        backbone.name: LinearProbe(
            StageFeatures(backbone.model, mean=backbone.mean, std=backbone.std),
            train,
            test,
            num_classes=len(CLASSES),
            progress=progress_of(backbone.name),
        ).run(label_stride=_LABEL_STRIDE)
        for backbone in backbones
    }


def scene_measurement(
    results: Mapping[str, ProbeResult], *, subject: str, num_scenes: int, command: str
) -> Measurement:
    """Return the results as a measurement for a weight's record.

    Args:
        results: Results of :func:`probe_on_scenes`.
        subject: The model that the record describes.
        num_scenes: Number of training and of test scenes.
        command: The command that reproduces the results.
    """
    return Measurement(
        task="linear segmentation probe",
        dataset=f"generated scenes, {len(CLASSES)} classes",
        metric="mean IoU",
        unit="%",
        images=num_scenes,
        seeds=1,
        protocol=f"BatchNorm (statistics of all training scenes) and one linear layer on the last "
        f"3 stages, a ViT's through its final norm, fitted on {num_scenes} scenes without "
        f"augmentation, loss at 1 of {_LABEL_STRIDE} x {_LABEL_STRIDE} pixels, measured on "
        f"{num_scenes} others",
        protocol_version=PROTOCOL_VERSION,
        command=command,
        subject=subject,
        means={label: round(100 * result.mean_iou, 2) for label, result in results.items()},
    )


def scene_table(results: Mapping[str, ProbeResult], num_scenes: int) -> str:
    """Format the results as plain text."""
    width = max(map(len, results))
    lines = [
        f"linear probe on {num_scenes} held-out scenes, {len(CLASSES)} classes",
        f"{'':{width}}  mean IoU  pixel accuracy",
    ]
    lines += [
        f"{label:{width}}  {100 * result.mean_iou:7.1f}%  {100 * result.pixel_accuracy:13.1f}%"
        for label, result in results.items()
    ]
    return "\n".join(lines)
