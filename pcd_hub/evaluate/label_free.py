"""Compare a frozen backbone's feature maps with a teacher's, without labels."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pcd_hub.data.labelled.classification import ClassificationSet
from pcd_hub.data.sources.open import ImageSource
from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.benchmark import Benchmark, scores_by_seed
from pcd_hub.evaluate.classification import crop_protocol, watch
from pcd_hub.evaluate.feature_maps import (
    FeatureExtractor,
    compute_device,
    extract_feature_maps,
    feature_extractor,
    num_reading_workers,
)
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.results import ModelScores, data_sha256
from pcd_hub.method.metrics import ProgressWrapper, effective_rank, linear_cka, pixel_retrieval
from pcd_hub.method.resampling import resample
from pcd_hub.models.teacher_loading import load_teacher

PROTOCOL_VERSION = 1
"""Raise it with every change that may change scores under the same protocol sentence."""
_CKA, _RANK = "CKA with teacher", "effective rank"


class LabelFreeReport(Benchmark):
    """Benchmark: agreement of feature maps with a teacher's, on any images.

    Three scores: how often the location that the teacher finds most similar is among the model's
    ``k`` nearest, linear CKA, and the effective rank of the model's feature vectors.

    Args:
        images: Any finite set of images.
        dataset: Name of the images in results tables.
        teacher: A teacher source (forms: ``pcd_hub/models/teacher_loading.py``).
        num_images: Number of images to compare; the same random subset every time.
        k: Number of nearest neighbours.
        image_size: Height and width of the centre crops in pixels.
        num_workers: Processes that read images. Default: 1 on CPUs, up to 16 with a GPU.

    Raises:
        TeacherError: If the teacher cannot be loaded.
    """

    def __init__(
        self,
        images: ImageSource | ClassificationSet,
        *,
        dataset: str,
        teacher: str = "quickstart",
        num_images: int = 200,
        k: int = 5,
        image_size: int = 224,
        num_workers: int | None = None,
    ) -> None:
        self._images = images
        self._dataset = dataset
        self._teacher_name = teacher
        self._teacher = load_teacher(teacher, image_size=image_size)
        self._teacher_maps: Tensor | None = None
        self._rows = random_subset(len(images), num_images)
        self._k = k
        self._image_size = image_size
        self._num_workers = num_workers

    def facts(self) -> dict[str, Any]:
        """Return the fields of the results table; see :class:`Benchmark`."""
        return {
            "task": "label-free report",
            "dataset": self._dataset,
            "protocol_version": PROTOCOL_VERSION,
            "images": len(self._rows),
            "units": {_retrieval(self._k): "%", _CKA: "%", _RANK: ""},
            "data_sha256": data_sha256(self._images.fingerprint()),
        }

    def score(self, name: str, seeds: Sequence[int] = (0,)) -> ModelScores:
        """Open a model by name (:func:`~pcd_hub.evaluate.models.open_model`) and score it.

        Raises:
            ConfigError: If the feature maps have fewer than ``k`` locations to compare with.
        """
        if self._teacher_maps is None:
            self._teacher_maps = self._maps(self._teacher.to(compute_device()), "teacher")
        return scores_by_seed(name, seeds, self._measure, image_size=self._image_size)

    @property
    def protocol(self) -> str:
        """One sentence with every choice that affects the scores."""
        return (
            f"frozen backbone, {crop_protocol(self._image_size)}, pixels of the last map against "
            f"those of the teacher {self._teacher_name}, both on the coarser grid; the {self._k} "
            f"nearest by cosine among the pixels of {len(self._rows)} images; linear CKA; "
            "effective rank: exp of the entropy of the pixels' singular values"
        )

    def _measure(self, model: EvaluatedModel) -> dict[str, float]:
        assert self._teacher_maps is not None
        return agreement(
            self._maps(feature_extractor(model, self._image_size), model.name),
            self._teacher_maps,
            k=self._k,
            watch=watch(f"{model.name}: nearest pixels"),
        )

    def _maps(self, extract: FeatureExtractor, name: str) -> Float[Tensor, "n c h w"]:
        batches = extract_feature_maps(
            extract,
            self._images,
            self._rows,
            size=self._image_size,
            num_workers=num_reading_workers(self._num_workers),
            what=f"{name}: {len(self._rows)} images",
        )
        return torch.cat(list(batches))


def random_subset(length: int, count: int) -> list[int]:
    """Draw ``count`` of ``length`` indices, the same ones every time, in ascending order."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    return sorted(order[:count].tolist())


def agreement(
    student: Float[Tensor, "n c _ _"],
    teacher: Float[Tensor, "n d _ _"],
    *,
    k: int,
    watch: ProgressWrapper = iter,
) -> dict[str, float]:
    """Compare two models' feature maps of the same images, on the coarser of the two grids.

    Returns:
        Retrieval and CKA in %, and the student's effective rank.

    Raises:
        ConfigError: If the maps of the other images have fewer than ``k`` locations.
    """
    grid = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    one, other = (resample(maps, grid).flatten(2) for maps in (student, teacher))
    if k > (others := (len(one) - 1) * one.shape[2]):
        raise ConfigError(
            f"--report.retrieval-k {k}: expected at most {others}, the number of feature-map "
            "locations of the other images"
        )
    vectors = [maps.transpose(1, 2).flatten(0, 1) for maps in (one, other)]
    return {
        _retrieval(k): 100 * pixel_retrieval(one, other, k=k, watch=watch),
        _CKA: 100 * linear_cka(*vectors),
        _RANK: effective_rank(vectors[0]),
    }


def _retrieval(k: int) -> str:
    return f"teacher's nearest pixel in top-{k}"
