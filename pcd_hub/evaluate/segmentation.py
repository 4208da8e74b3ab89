"""Linear segmentation probe on frozen feature maps.

A 1x1 convolution on the normalised, concatenated maps of the last stages, bilinearly upsampled to
the size of the labels. This is the protocol of DINOv2 and DINOv3, which put a BatchNorm before the
convolution. Because the backbone is frozen, the BatchNorm's statistics are computed once from the
whole training set, and its affine part is absorbed by the convolution.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcd_hub.data.labelled.segmentation_set import IGNORE
from pcd_hub.data.progress import Progress, silent
from pcd_hub.errors import DataError
from pcd_hub.evaluate.stage_features import FeatureCache, FeatureMaps, Images
from pcd_hub.method.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy


@runtime_checkable
class Masks(Protocol):
    """A ``(height, width)`` map of classes per image; ``IGNORE`` marks unlabelled pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: Any, /) -> UInt8[Tensor, "height width"]: ...


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images with the class of every pixel."""

    images: Images
    masks: Masks
    """Masks, all of one size for training and of any size for testing."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Scores of one probe on the test images, each in [0, 1]."""

    mean_iou: float
    class_iou: tuple[float, ...]
    """IoU of each class; NaN if it occurs in neither the labels nor the predictions."""
    pixel_accuracy: float
    predictions: tuple[UInt8[Tensor, "_ _"], ...]
    """Predicted classes at the size of each mask."""


class LinearProbe:
    """Linear probe of a frozen backbone, trained on one set of images and scored on another.

    The backbone is not changed, so runs with different seeds share its feature maps.

    Args:
        features: The frozen backbone, e.g. :class:`~pcd_hub.evaluate.stage_features.StageFeatures`.
        train: Training images, with masks of one size.
        test: Test images, with masks of any size.
        num_classes: Number of classes C; masks hold 0 to C - 1 and ``IGNORE``.
        cache_bytes: Memory for cached feature maps, for training and test images each.
        progress: Progress display for passes over the images and for training.
    """

    def __init__(
        self,
        features: FeatureMaps,
        train: LabelledImages,
        test: LabelledImages,
        *,
        num_classes: int,
        cache_bytes: int = 4 * 1024**3,
        progress: Progress = silent,
    ) -> None:
        self._train, self._test = (
            FeatureCache(
                features, split.images, cache_bytes=cache_bytes, progress=progress, name=name
            )
            for split, name in ((train, "training images"), (test, "test images"))
        )
        self._progress = progress
        self._train_masks, self._test_masks = train.masks, test.masks
        self._num_classes = num_classes
        mean, deviation = self._train.statistics()  # of the training set, as in BatchNorm
        for maps in (self._train, self._test):
            maps.standardise(mean, deviation + 1e-5)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(
        self,
        *,
        steps: int = 400,
        batch_size: int = 32,
        lr: float = 3e-3,
        weight_decay: float = 1e-3,
        label_stride: int = 1,
        seed: int = 0,
    ) -> ProbeResult:
        """Train a probe with AdamW and a cosine schedule, and score it on the test images.

        Use enough steps to converge: an undertrained probe predicts the most frequent class for
        every backbone.

        Args:
            steps: Number of optimizer steps.
            batch_size: Images per step.
            lr: Initial learning rate.
            weight_decay: Weight decay of the convolution, bias included.
            label_stride: Compute the loss at every ``label_stride``-th row and column, starting at
                a random offset: the same expected value at a fraction of the cost.
            seed: Seed of the batches.

        Raises:
            DataError: If no pixel of the test images has a label.
        """
        generator, offsets = (torch.Generator().manual_seed(seed) for _ in range(2))
        probe = nn.Linear(self._train.num_channels, self._num_classes).to(self._device)
        for parameter in probe.parameters():
            nn.init.zeros_(parameter)  # the problem is convex: any initial weights will do
        optimizer = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batch_rows = [
            torch.randint(len(self._train), (batch_size,), generator=generator).tolist()
            for _ in range(steps)
        ]
        batches = zip(batch_rows, self._train.batches(batch_rows), strict=True)
        for rows, maps in self._progress(batches, "training the probe", total=steps):
            labels = torch.stack([self._train_masks[row] for row in rows])
            labels = labels.to(self._device, torch.int64)
            y, x = torch.randint(label_stride, (2,), generator=offsets).tolist()
            logits = self._logits(probe, maps)
            loss = F.cross_entropy(
                _upsampled(logits, labels.shape[1:], first=(y, x), stride=label_stride),
                labels[:, y::label_stride, x::label_stride],
                ignore_index=IGNORE,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return self._score(probe)

    def _logits(
        self, probe: nn.Linear, maps: list[Float[Tensor, "c h w"]]
    ) -> Float[Tensor, "b classes h w"]:
        """Apply the 1x1 convolution, as one matrix product per image."""
        by_image = [
            torch.addmm(probe.bias[:, None], probe.weight, image.to(self._device).flatten(1))
            for image in maps
        ]
        return torch.stack(by_image).unflatten(2, maps[0].shape[1:])

    @torch.inference_mode()
    def _score(self, probe: nn.Linear) -> ProbeResult:
        confusion = torch.zeros(self._num_classes, self._num_classes, dtype=torch.int64)
        predictions = []
        for rows, maps in self._test.all_batches("predictions"):
            for row, logits in zip(rows, self._logits(probe, maps), strict=True):
                mask = self._test_masks[row]
                upsampled = F.interpolate(logits[None], mask.shape, mode="bilinear")[0]
                predictions.append(upsampled.argmax(0).to(torch.uint8).cpu())
                confusion += confusion_matrix(
                    predictions[-1].long(), mask.long(), num_classes=self._num_classes
                )
        if not confusion.any():
            raise DataError(
                "no pixel of the test images has a label; check which value of the masks is ignored"
            )
        return ProbeResult(
            mean_iou=float(mean_iou(confusion)),
            class_iou=tuple(class_iou(confusion).tolist()),
            pixel_accuracy=float(pixel_accuracy(confusion)),
            predictions=tuple(predictions),
        )


def _upsampled(
    logits: Float[Tensor, "b c h w"], size: tuple[int, ...], *, first: tuple[int, int], stride: int
) -> Float[Tensor, "b c _ _"]:
    """Upsample bilinearly to ``size``, only at every ``stride``-th row and column."""
    ys, xs = (
        (torch.arange(start, length, stride, device=logits.device) + 0.5) * (2 / length) - 1
        for start, length in zip(first, size, strict=True)
    )
    locations = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    return F.grid_sample(
        logits,
        locations.expand(len(logits), -1, -1, -1),
        padding_mode="border",
        align_corners=False,
    )
