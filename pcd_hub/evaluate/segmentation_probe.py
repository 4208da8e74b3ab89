"""Linear segmentation probe of a model on a labelled data set."""

import logging
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import torch

from pcd_hub.data.labelled.same_classes import check_same_classes
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.data.progress import Progress, silent
from pcd_hub.errors import DataError
from pcd_hub.evaluate.benchmark import Benchmark
from pcd_hub.evaluate.feature_maps import compute_device, num_reading_workers
from pcd_hub.evaluate.models import EvaluatedModel, for_each_seed
from pcd_hub.evaluate.progress import progress_of
from pcd_hub.evaluate.resized_images import resized_images, resized_tensors
from pcd_hub.evaluate.results import ModelScores, data_sha256, finite_scores
from pcd_hub.evaluate.segmentation import LabelledImages, LinearProbe, ProbeResult
from pcd_hub.evaluate.stage_features import FeatureCache, FeatureMaps, StageFeatures

log = logging.getLogger("pcd_hub")

PROTOCOL_VERSION = 1
"""Raise it with every change that may change scores under the same protocol sentence."""


@dataclass(frozen=True)
class SegmentationProbe(Benchmark):
    """Benchmark: mean IoU of a linear probe on frozen feature maps.

    The features are computed once per model; a BatchNorm and a 1x1 convolution are trained on them
    once per seed.
    """

    train: SegmentationSet
    test: SegmentationSet
    _: KW_ONLY
    image_size: int = 192
    """Height and width in pixels to which images are resized; scores are computed at label size."""
    num_stages: int = 3
    """Number of last stages to concatenate, on the grid of the finest."""
    steps: int = 400
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 1e-3
    label_stride: int = 4
    """Compute the training loss at every ``label_stride``-th row and column."""
    cache_gigabytes: float = 4.0
    """Memory for cached feature maps, for training and test images each."""
    num_workers: int | None = None
    """Processes that read images. Default: 1 on CPUs, up to 16 with a GPU."""
    in_memory: bool = False
    """Read images and masks once, and resize the test masks too: scores are then computed at
    ``image_size``, and a probe takes the same time whatever the size of the labels."""

    def __post_init__(self) -> None:
        check_same_classes(self.train, self.test)

    def facts(self) -> dict[str, Any]:
        """Return the fields of the results table; see :class:`Benchmark`."""
        return {
            "task": "linear segmentation probe",
            "dataset": self.test.name,
            "protocol_version": PROTOCOL_VERSION,
            "images": len(self.test),
            "units": {"mean IoU": "%", "pixel accuracy": "%"},
            "data_sha256": data_sha256(self.train.fingerprint(), self.test.fingerprint()),
        }

    def score(self, name: str, seeds: Sequence[int] = (0,)) -> ModelScores:
        """Open a model by name (:func:`~pcd_hub.evaluate.models.open_model`) and probe it.

        Raises:
            StudentError: If the model cannot compute these stages for images of this size.
            DataError: If an image or mask cannot be read, or no test pixel has a label.
        """
        started = time.monotonic()
        runs = [
            (model, probe.run(**self._training, seed=seed))
            for seed, model, probe in for_each_seed(
                name, seeds, self._prepare, image_size=self.image_size
            )
        ]
        results = [result for _, result in runs]
        by_class = [
            finite_scores(dict(zip(self.test.classes, result.class_iou, strict=True)))
            for result in results
        ]
        return ModelScores(
            name=name,
            metrics={
                "mean IoU": tuple(100 * result.mean_iou for result in results),
                "pixel accuracy": tuple(100 * result.pixel_accuracy for result in results),
            },
            weights_sha256=runs[0][0].weights_sha256,
            architecture=runs[0][0].architecture,
            details={"class_iou": by_class, "seconds": round(time.monotonic() - started, 1)},
            predictions=results[0].predictions,
        )

    def check(self, features: FeatureMaps) -> None:
        """Check that a backbone can compute its features for images of this size.

        Raises:
            StudentError: If it cannot.
            DataError: If an image or mask cannot be read.
        """
        FeatureCache(features, self._splits[0].images[[0]], cache_bytes=0)

    def probe(self, features: FeatureMaps, *, seed: int = 0) -> ProbeResult:
        """Probe a frozen backbone that is given as a function, which is not moved to a device.

        Raises:
            StudentError: If it cannot compute its features for images of this size.
            DataError: If an image or mask cannot be read, or no test pixel has a label.
        """
        return self._linear_probe(features).run(**self._training, seed=seed)

    @property
    def protocol(self) -> str:
        """One sentence with every choice that affects the scores."""
        size, stride = self.image_size, self.label_stride
        labels = f"labels of {size} x {size}" if self.in_memory else "label size"
        return (
            f"frozen backbone, whole images squashed to {size} x {size} (bicubic); BatchNorm "
            "(statistics of the whole training set) and a 1x1 convolution on the last "
            f"{self.num_stages} stages (of a ViT: blocks, through its final norm), bilinear to the "
            f"finest; trained on {self.train.name} ({len(self.train)} images) without augmentation "
            f"for {self.steps} steps of {self.batch_size}, AdamW {self.lr:g} along half "
            f"a cosine without warm-up, weight decay {self.weight_decay:g}, loss at 1 of {stride} "
            f"x {stride} pixels; one scale, no sliding window, logits bilinear to {labels}; mean "
            "over the classes in truth or prediction"
        )

    @property
    def _training(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "label_stride": self.label_stride,
        }

    @cached_property
    def _splits(self) -> tuple[LabelledImages, LabelledImages]:
        workers = num_reading_workers(self.num_workers)
        if self.in_memory:
            train, test = (
                resized_tensors(split, self.image_size, num_workers=workers)
                for split in (self.train, self.test)
            )
            return train, test
        return (
            resized_images(self.train, self.image_size, resize_masks=True, num_workers=workers),
            resized_images(self.test, self.image_size, resize_masks=False, num_workers=workers),
        )

    def _prepare(self, model: EvaluatedModel) -> LinearProbe:
        model.model.to(compute_device())
        return self._linear_probe(self.features(model), progress=progress_of(model.name))

    def features(self, model: EvaluatedModel) -> StageFeatures:
        """Return the feature maps of a model that the probe takes; it is put in eval mode."""
        return StageFeatures(
            model.model, num_stages=self.num_stages, mean=model.mean, std=model.std
        )

    def _linear_probe(self, features: FeatureMaps, *, progress: Progress = silent) -> LinearProbe:
        probe = LinearProbe(
            features,
            *self._splits,
            num_classes=len(self.train.classes),
            cache_bytes=int(self.cache_gigabytes * 1024**3),
            progress=progress,
        )
        if (found := self._num_trained_classes) < 2:
            raise DataError(
                f"the training masks have {found} of {len(self.train.classes)} classes, expected "
                "at least 2; check their values, and which one is ignored"
            )
        return probe

    @cached_property
    def _num_trained_classes(self) -> int:
        """Number of classes in the training masks, which the first probe has read."""
        masks = self._splits[0].masks
        pixels = torch.zeros(256, dtype=torch.int64)
        for row in range(len(masks)):
            pixels += torch.bincount(masks[row].flatten(), minlength=256)
        classes = self.train.classes
        missing = [name for name, count in zip(classes, pixels, strict=False) if not count]
        if missing:
            log.warning(
                "the training masks have no pixel of %d classes, such as '%s'; where a probe "
                "predicts one of them nevertheless, its mean IoU falls, so leave them out",
                *(len(missing), missing[0]),
            )
        return len(classes) - len(missing)
