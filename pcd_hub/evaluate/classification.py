"""Classification of whole images from a frozen backbone: k-NN and a linear classifier."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pcd_hub.data.labelled.classification import ClassificationSet
from pcd_hub.data.labelled.same_classes import check_same_classes
from pcd_hub.data.progress import Progress, silent
from pcd_hub.evaluate.benchmark import Benchmark, scores_by_seed
from pcd_hub.evaluate.feature_maps import (
    FeatureExtractor,
    extract_feature_maps,
    feature_extractor,
    num_reading_workers,
)
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.progress import progress, progress_of
from pcd_hub.evaluate.results import ModelScores, data_sha256
from pcd_hub.method.metrics import ProgressWrapper, knn_vote

PROTOCOL_VERSION = 1
"""Raise it with every change that may change scores under the same protocol sentence."""


@dataclass(frozen=True)
class ClassificationProbe(Benchmark):
    """Benchmark: top-1 accuracy by k-NN and by a linear classifier on average-pooled embeddings."""

    train: ClassificationSet
    test: ClassificationSet
    _: KW_ONLY
    image_size: int = 224
    """Height and width of the centre crops in pixels."""
    k: int = 20
    temperature: float = 0.07
    """Temperature of the k-NN vote weights, ``exp(cosine / temperature)``."""
    penalty: float = 1e-3
    """L2 penalty of the linear classifier's weights."""
    num_workers: int | None = None
    """Processes that read images. Default: 1 on CPUs, up to 16 with a GPU."""

    def __post_init__(self) -> None:
        check_same_classes(self.train, self.test)

    def facts(self) -> dict[str, Any]:
        """Return the fields of the results table; see :class:`Benchmark`."""
        return {
            "task": "image classification",
            "dataset": self.test.name,
            "protocol_version": PROTOCOL_VERSION,
            "images": len(self.test),
            "units": {"k-NN top-1": "%", "linear top-1": "%"},
            "data_sha256": data_sha256(self.train.fingerprint(), self.test.fingerprint()),
        }

    def score(self, name: str, seeds: Sequence[int] = (0,)) -> ModelScores:
        """Open a model by name (:func:`~pcd_hub.evaluate.models.open_model`) and score it."""
        return scores_by_seed(name, seeds, self._measure, image_size=self.image_size)

    @property
    def protocol(self) -> str:
        """One sentence with every choice that affects the scores."""
        return (
            f"frozen backbone, {crop_protocol(self.image_size)}, mean of the last map (of a ViT's "
            f"patches, not its class token); {self.k} nearest of {self.train.name} "
            f"({len(self.train)} images) by cosine, weights exp(cos / {self.temperature:g}); "
            f"logistic regression on standardised vectors, penalty {self.penalty:g}, L-BFGS, "
            "without augmentation"
        )

    def _measure(self, model: EvaluatedModel) -> dict[str, float]:
        extract = feature_extractor(model, self.image_size)
        train, test = (
            self._embeddings(extract, images, f"{model.name}: {images.name}")
            for images in (self.train, self.test)
        )
        labels, expected = (torch.tensor(images.labels) for images in (self.train, self.test))
        num_classes = len(self.train.classes)
        by_knn = knn_vote(
            train,
            labels,
            test,
            num_classes=num_classes,
            k=self.k,
            temperature=self.temperature,
            watch=watch(f"{model.name}: neighbours"),
        )
        by_linear = linear_classifier(
            train,
            labels,
            test,
            num_classes=num_classes,
            penalty=self.penalty,
            progress=progress_of(model.name),
        )
        return {
            metric: 100 * float((predicted == expected).float().mean())
            for metric, predicted in (("k-NN top-1", by_knn), ("linear top-1", by_linear))
        }

    def _embeddings(
        self, extract: FeatureExtractor, images: ClassificationSet, what: str
    ) -> Float[Tensor, "n c"]:
        """Average-pool the feature map of every image."""
        batches = extract_feature_maps(
            extract,
            images,
            range(len(images)),
            size=self.image_size,
            num_workers=num_reading_workers(self.num_workers),
            what=what,
        )
        return torch.cat([maps.mean((2, 3)) for maps in batches])


def linear_classifier(
    train: Float[Tensor, "n c"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m c"],
    *,
    num_classes: int,
    penalty: float = 1e-3,
    steps: int = 200,
    progress: Progress = silent,
) -> Int64[Tensor, " m"]:
    """Predict the test classes by multinomial logistic regression on standardised embeddings.

    Args:
        train: Training embeddings, one per image.
        labels: Class of each training image.
        test: Test embeddings.
        num_classes: Number of classes.
        penalty: ``penalty / 2`` times the squared weights is added to the mean cross-entropy.
        steps: Maximum number of L-BFGS iterations. The problem is convex and has one solution.
        progress: Shows the number of loss evaluations.
    """
    deviation, mean = torch.std_mean(train, 0, correction=0)
    train, test = ((vectors - mean) / (deviation + 1e-5) for vectors in (train, test))
    layer = nn.Linear(train.shape[1], num_classes).to(train)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=steps, line_search_fn="strong_wolfe")
    limit = optimizer.param_groups[0]["max_eval"]
    evaluations = progress(itertools.count(), "fitting, evaluations at most", total=limit)

    def loss() -> Tensor:
        next(evaluations)
        optimizer.zero_grad()
        value = F.cross_entropy(layer(train), labels) + penalty / 2 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return layer(test).argmax(1)


def crop_protocol(image_size: int) -> str:
    """Describe the centre crops for a protocol."""
    return f"centre crops (7/8 of the shorter side, at {image_size} x {image_size}, bicubic)"


def watch(what: str) -> ProgressWrapper:
    """Return a progress bar for the parts of a long computation."""

    def watched(parts: Sequence[Tensor]) -> Iterator[Tensor]:
        return progress(parts, what, total=len(parts))

    return watched
