"""The linear segmentation probe: which classes a frozen backbone already separates, pixel by pixel.

One 1x1 convolution on the normalised, concatenated maps of the last stages, upsampled bilinearly to
the labels. DINOv2 and DINOv3 probe so too, with a BatchNorm before the convolution; as the backbone
is frozen, its statistics are those of the training set, computed once like the features, and its
affine part is in the convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcd_hub.method.metrics import class_iou, confusion_matrix

FeatureMaps = Callable[[Tensor], Float[Tensor, "b c h w"]]

IGNORE = 255


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images with the class of every pixel."""

    images: UInt8[Tensor, "n 3 height width"]
    masks: UInt8[Tensor, "n height width"]
    """``IGNORE`` where there is no label."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Scores of one probe on the held-out images, each in [0, 1]."""

    mean_iou: float
    class_iou: tuple[float, ...]
    """NaN for a class that does not occur."""
    pixel_accuracy: float
    predictions: UInt8[Tensor, "n height width"]


class StageFeatures:
    """The maps of a timm model's last ``num_stages`` stages, side by side on the finest's grid.

    Args:
        model: A timm model with ``forward_intermediates``; put in eval mode.
        num_stages: How many stages (blocks, in a ViT) from the end.
        mean: Of the pixel values in [0, 1] per channel that the model expects.
        std: Likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_stages: int = 3,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self._model = model.eval()
        self._num_stages = num_stages
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        device = next(self._model.parameters()).device
        normalised = ((images / 255 - self._mean) / self._std).to(device)
        maps = self._model.forward_intermediates(  # pyright: ignore[reportCallIssue]
            normalised, indices=self._num_stages, intermediates_only=True
        )
        grid = max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps)
        return torch.cat([F.interpolate(m.float(), grid, mode="bilinear") for m in maps], 1)


def linear_probe(
    features: FeatureMaps,
    train: LabelledImages,
    test: LabelledImages,
    *,
    num_classes: int,
    steps: int = 400,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> ProbeResult:
    """Train the probe on ``train`` and score it on ``test``.

    The backbone behind ``features`` stays as it is.

    AdamW along half a cosine. The steps must be enough to converge: a short probe predicts the
    commonest class for every backbone alike.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_maps = torch.cat([features(part).cpu() for part in train.images.split(64)])
    deviation, mean = torch.std_mean(train_maps, (0, 2, 3), correction=0, keepdim=True)
    train_maps = train_maps.sub_(mean).div_(deviation + 1e-5)

    def standardised(images: Tensor) -> Tensor:
        return (features(images).cpu() - mean) / (deviation + 1e-5)

    generator = torch.Generator().manual_seed(seed)
    probe = nn.Conv2d(train_maps.shape[1], num_classes, 1).to(device)
    for parameter in probe.parameters():
        nn.init.zeros_(parameter)  # the problem is convex: every start ends alike
    optimizer = torch.optim.AdamW(probe.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(train_maps), (batch_size,), generator=generator)
        truth = train.masks[rows].to(device, torch.int64)
        logits = _upsampled(probe, train_maps[rows].to(device), truth)
        loss = F.cross_entropy(logits, truth, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return _score(probe, standardised, test, num_classes)


def _upsampled(probe: nn.Module, maps: Tensor, truth: Tensor) -> Tensor:
    return F.interpolate(probe(maps), truth.shape[1:], mode="bilinear")


@torch.inference_mode()
def _score(
    probe: nn.Module,
    features: FeatureMaps,
    test: LabelledImages,
    num_classes: int,
) -> ProbeResult:
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    predictions = []
    for images, masks in zip(test.images.split(64), test.masks.split(64), strict=True):
        logits = _upsampled(probe, features(images).to(next(probe.parameters()).device), masks)
        predicted = logits.argmax(1).cpu()
        predictions.append(predicted.to(torch.uint8))
        confusion += confusion_matrix(predicted, masks.to(torch.int64), num_classes=num_classes)
    iou = class_iou(confusion)
    return ProbeResult(
        mean_iou=float(iou.nanmean()),
        class_iou=tuple(iou.tolist()),
        pixel_accuracy=float(confusion.diagonal().sum() / confusion.sum()),
        predictions=torch.cat(predictions),
    )
