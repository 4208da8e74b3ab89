"""Scores: tensors in, tensors out."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Watch = Callable[[Sequence[Tensor]], Iterator[Tensor]]
"""Iterates over the parts of a long calculation unchanged, and may show how far it is."""


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


def pixel_accuracy(confusion: Int64[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Share of the labelled pixels whose class is right; NaN if there are none."""
    return confusion.diagonal().sum() / confusion.sum()


def knn_vote(
    train: Float[Tensor, "n c"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m c"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    watch: Watch = iter,
) -> Int64[Tensor, " m"]:
    """Class of each test vector: its ``k`` nearest by cosine vote with weight ``exp(cos / T)``.

    The weighted vote of Wu et al. (arXiv:1805.01978), k and T as DINO's (arXiv:2104.14294).
    """
    keys = F.normalize(train, dim=1)
    votes = []
    for queries in watch(F.normalize(test, dim=1).split(1024)):
        similar, nearest = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
        weights = ((similar - 1) / temperature).exp()  # shifted: no overflow at a small T
        counted = weights.new_zeros(len(queries), num_classes)
        votes.append(counted.scatter_add_(1, labels[nearest], weights).argmax(1))
    return torch.cat(votes)


def effective_rank(vectors: Float[Tensor, "n c"]) -> float:
    """How many directions the vectors really use: 1 to C (Roy and Vetterli, EUSIPCO 2007).

    The exponential of the entropy of their singular values, after the mean is taken off. A
    collapsed student's is near 1. The singular values are taken from the smaller Gram matrix in
    float64: to five digits those of an SVD, in a tenth to a third of the time.
    """
    centred = vectors.double() - vectors.double().mean(0)
    wide = centred if len(centred) <= centred.shape[1] else centred.T
    squares = torch.linalg.eigvalsh(wide @ wide.T)
    rounding = len(squares) * torch.finfo(squares.dtype).eps * squares.max()
    values = squares.where(squares > rounding, 0.0).sqrt()
    shares = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


def mean_cosine(vectors: Float[Tensor, "n c"]) -> float:
    """Mean cosine over all pairs, each with itself too: 1 if all point the same way."""
    return float(F.normalize(vectors.double(), dim=1).mean(0).square().sum())


def linear_cka(one: Float[Tensor, "n c"], other: Float[Tensor, "n d"]) -> float:
    """How alike two descriptions of the same things are, in [0, 1] (arXiv:1905.00414, eq. 7).

    Rotating or scaling either changes nothing. 0 if all vectors of one are alike.
    """
    a, b = (vectors.double() - vectors.double().mean(0) for vectors in (one, other))
    both = torch.linalg.norm(a.T @ b) ** 2
    alone = torch.linalg.norm(a.T @ a) * torch.linalg.norm(b.T @ b)
    return float(both / alone) if alone > 0 else 0.0


def pixel_retrieval(
    student: Float[Tensor, "n c pixels"],
    teacher: Float[Tensor, "n d pixels"],
    *,
    k: int = 5,
    watch: Watch = iter,
) -> float:
    """Share of pixels whose nearest one in the teacher's eyes is among the student's ``k`` nearest.

    Nearest by cosine among the pixels of all other images, so the two need no common space.
    """
    count, _, pixels = student.shape
    images = torch.arange(count).repeat_interleave(pixels)
    mine, theirs = (
        F.normalize(maps.transpose(1, 2).flatten(0, 1).float(), dim=1)
        for maps in (student, teacher)
    )
    found = 0
    for rows in watch(torch.arange(len(images)).split(1024)):
        own = images[rows, None] == images
        wanted = (theirs[rows] @ theirs.T).masked_fill(own, -2).argmax(1)
        nearest = (mine[rows] @ mine.T).masked_fill(own, -2).topk(k, dim=1).indices
        found += int((nearest == wanted[:, None]).any(1).sum())
    return found / len(images)
