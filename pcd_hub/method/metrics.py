"""Scores: tensors in, tensors out."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def confusion_matrix(
    predicted: Int64[Tensor, "*shape"], truth: Int64[Tensor, "*shape"], *, num_classes: int
) -> Int64[Tensor, "classes classes"]:
    """Counts of (truth, predicted) pairs.

    Pixels whose truth is outside ``0..num_classes - 1`` are ignored.
    """
    known = (truth >= 0) & (truth < num_classes)
    pairs = truth[known] * num_classes + predicted[known]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(confusion: Int64[Tensor, "classes classes"]) -> Float[Tensor, " classes"]:
    """Intersection over union of each class in [0, 1].

    NaN for a class that occurs in neither truth nor prediction.
    """
    counts = confusion.double()
    overlap = counts.diagonal()
    return overlap / (counts.sum(0) + counts.sum(1) - overlap)


def mean_iou(confusion: Int64[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Mean of :func:`class_iou` over the classes that occur."""
    return class_iou(confusion).nanmean()
