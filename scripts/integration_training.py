"""Short trainings of segmenters and detectors on labelled images, and their scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.labelled.coco import CocoSplit, read_split
from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.evaluate.resized_images import resized_images
from pcd_hub.evaluate.segmentation import LabelledImages
from pcd_hub.method.metrics import confusion_matrix, mean_iou
from pcd_hub.method.optim import decay_groups
from pcd_hub.method.schedule import warmup_cosine
from pcd_hub.train.detection.batches import (
    Labels,
    coco_results,
    detection_batches,
    move_to_device,
    read_images,
)
from pcd_hub.train.detection.scores import score_detections
from pcd_hub.train.segmentation.fcn import pixel_cross_entropy

WEIGHT_DECAY = 0.01
_WARMUP_SHARE = 0.1
_GRADIENT_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The length of a training by AdamW: a linear warm-up over a tenth of the steps, half a cosine.

    The norm of the gradient is limited to 1.
    """

    steps: int
    batch_size: int
    lr: float
    seed: int


class SegmentationTask:
    """Semantic segmentation, scored by the mean IoU at the masks' own sizes.

    Args:
        data: A folder with images/SPLIT and masks/SPLIT.
        test_split: The split to score on; training is on ``train``.
        image_size: Height and width to which images are resized.
    """

    def __init__(self, data: Path, *, test_split: str, image_size: int) -> None:
        train = open_segmentation(str(data), "train")
        test = open_segmentation(str(data), test_split)
        self.num_classes = len(train.classes)
        self._train = resized_images(train, image_size, resize_masks=True, num_workers=0)
        self._test = resized_images(test, image_size, resize_masks=False, num_workers=0)

    def train(self, model: nn.Module, schedule: Schedule) -> None:
        """Train all parameters on the cross-entropy of all labelled pixels."""
        optimizer = _AdamW(model, schedule)
        generator = torch.Generator().manual_seed(schedule.seed)
        model.train()
        for rows in _row_batches(len(self._train.masks), schedule, generator):
            images, masks = _read(self._train, rows)
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            images[mirrored], masks[mirrored] = images[mirrored].flip(3), masks[mirrored].flip(2)
            scores = F.interpolate(model(_normalised(images)), masks.shape[1:], mode="bilinear")
            optimizer.step(pixel_cross_entropy(scores, masks))

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict[str, float]:
        """Return the mean IoU in %."""
        model.eval()
        counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.long)
        for row in range(len(self._test.masks)):
            scores, mask = model(_normalised(self._test.images[[row]])), self._test.masks[row]
            predicted = F.interpolate(scores, mask.shape, mode="bilinear")[0].argmax(0)
            counts += confusion_matrix(predicted, mask.long(), num_classes=self.num_classes)
        return {"mean IoU": 100 * mean_iou(counts).item()}


class DetectionTask:
    """Object detection, scored by COCO's average precision of boxes.

    Args:
        data: A folder with images/SPLIT and annotations/instances_SPLIT.json.
        test_split: The split to score on; training is on ``train``.
    """

    def __init__(self, data: Path, *, test_split: str) -> None:
        self._train, self._test = coco_split(data, "train"), coco_split(data, test_split)
        self._labels = Labels(self._train.categories)
        self.num_classes = len(self._labels.category_ids)

    def train(self, model: nn.Module, schedule: Schedule) -> None:
        """Train all parameters on the sum of torchvision's losses."""
        optimizer = _AdamW(model, schedule)
        plan = BatchPlan(
            global_batch_size=schedule.batch_size, total_steps=schedule.steps, seed=schedule.seed
        )
        images = self._train.with_objects()
        model.train()
        for batch in detection_batches(images, self._labels, plan, masks=False, num_workers=0):
            losses = model(*move_to_device(batch, torch.device("cpu")))
            optimizer.step(torch.stack(list(losses.values())).sum())

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict[str, float]:
        """Return box AP and AP50 in %."""
        model.eval()
        found = []
        pixels = read_images(self._test.images, num_workers=0)
        for image, each in zip(self._test.images, pixels, strict=True):
            (output,) = model([each / 255])
            found += coco_results(image, output, self._labels)
        scores, _ = score_detections(self._test, found, masks=False)
        return {name: scores[name] for name in ("box AP", "box AP50")}


class _AdamW:
    """AdamW with the schedule's learning rate."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        groups = decay_groups(model, weight_decay=WEIGHT_DECAY)
        self._parameters = [each for group in groups for each in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, lr=schedule.lr)
        self._schedule, self._done = schedule, 0

    def step(self, loss: Tensor) -> None:
        steps = self._schedule.steps
        warmup = int(_WARMUP_SHARE * steps)
        factor = warmup_cosine(self._done, warmup_steps=warmup, total_steps=steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.lr * factor
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, _GRADIENT_NORM, error_if_nonfinite=True)
        self._optimizer.step()
        self._done += 1


def _row_batches(count: int, schedule: Schedule, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield batches of complete permutations, without the remainder of each."""
    done = 0
    while True:
        rows = torch.randperm(count, generator=generator)
        for batch in rows[: count - count % schedule.batch_size].split(schedule.batch_size):
            if done == schedule.steps:
                return
            yield batch.tolist()
            done += 1


def _read(data: LabelledImages, rows: list[int]) -> tuple[Tensor, Tensor]:
    return data.images[rows].clone(), torch.stack([data.masks[row] for row in rows])


def _normalised(images: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (images / 255 - mean) / std


def coco_split(data: Path, split: str) -> CocoSplit:
    """Read and check a split of ``images/SPLIT`` and ``annotations/instances_SPLIT.json``."""
    file = data / "annotations" / f"instances_{split}.json"
    return read_split(file, data / "images" / split, read_masks=False)
