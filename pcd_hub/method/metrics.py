"""Evaluation metrics on tensors."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

ProgressWrapper = Callable[[Sequence[Tensor]], Iterator[Tensor]]
"""Wraps an iterable of chunks, as ``tqdm`` does, to show progress."""


def confusion_matrix(
    predicted: Int64[Tensor, "*shape"], truth: Int64[Tensor, "*shape"], *, num_classes: int
) -> Int64[Tensor, "classes classes"]:
    """Count (truth, predicted) pairs.

    Pixels with a label outside ``0..num_classes - 1`` are ignored.
    """
    known = (truth >= 0) & (truth < num_classes)
    pairs = truth[known] * num_classes + predicted[known]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(confusion: Int64[Tensor, "classes classes"]) -> Float[Tensor, " classes"]:
    """Compute the intersection over union of each class, in [0, 1].

    A class that occurs in neither truth nor prediction is NaN.
    """
    counts = confusion.double()
    overlap = counts.diagonal()
    return overlap / (counts.sum(0) + counts.sum(1) - overlap)


def mean_iou(confusion: Int64[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Compute the mean of :func:`class_iou` over the classes that occur."""
    return class_iou(confusion).nanmean()


def pixel_accuracy(confusion: Int64[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Compute the fraction of labelled pixels classified correctly; NaN if there are none."""
    return confusion.diagonal().sum() / confusion.sum()


def knn_vote(
    train: Float[Tensor, "n c"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m c"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    watch: ProgressWrapper = iter,
) -> Int64[Tensor, " m"]:
    """Classify each test vector by the vote of its ``k`` nearest neighbours in cosine similarity.

    A neighbour's vote weighs ``exp(cos / T)`` (Wu et al., arXiv:1805.01978); the defaults of k and
    T are DINO's (arXiv:2104.14294).

    Args:
        train: Vectors with known classes.
        labels: Class of each train vector.
        test: Vectors to classify.
        num_classes: Number of classes.
        k: Number of neighbours; at most all train vectors are used.
        temperature: T > 0.
        watch: Progress wrapper around the chunks of test vectors.
    """
    keys = F.normalize(train, dim=1)
    votes = []
    for queries in watch(F.normalize(test, dim=1).split(1024)):
        similar, nearest = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
        weights = ((similar - 1) / temperature).exp()  # shifted to avoid overflow at a small T
        counted = weights.new_zeros(len(queries), num_classes)
        votes.append(counted.scatter_add_(1, labels[nearest], weights).argmax(1))
    return torch.cat(votes)


def retrieval_top1(first: Float[Tensor, "n c"], second: Float[Tensor, "n c"]) -> float:
    """Measure how often the nearest vector, by cosine similarity, is the same image's other view.

    Args:
        first: One vector per image, of its first view.
        second: One vector per image, of its second view.

    Returns:
        The fraction in [0, 1], mean of the searches in both directions.
    """
    one, other = F.normalize(first, dim=1), F.normalize(second, dim=1)
    hits = 0
    for rows in torch.arange(len(one), device=one.device).split(1024):
        for queries, keys in ((one, other), (other, one)):
            hits += int(((queries[rows] @ keys.T).argmax(1) == rows).sum())
    return hits / (2 * len(one))


def effective_rank(vectors: Float[Tensor, "n c"]) -> float:
    """Compute the effective rank of the centred vectors, 1 to C (Roy and Vetterli, EUSIPCO 2007).

    It is the exponential of the entropy of the normalised singular values; near 1 for a collapsed
    student. The singular values come from the smaller Gram matrix in float64, which agrees with an
    SVD to five digits and takes a tenth to a third of the time.
    """
    centred = vectors.double() - vectors.double().mean(0)
    wide = centred if len(centred) <= centred.shape[1] else centred.T
    squares = torch.linalg.eigvalsh(wide @ wide.T)
    rounding = len(squares) * torch.finfo(squares.dtype).eps * squares.max()
    values = squares.where(squares > rounding, 0.0).sqrt()
    shares = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


def mean_cosine(vectors: Float[Tensor, "n c"]) -> float:
    """Compute the mean cosine similarity over all pairs, each vector with itself included."""
    return float(F.normalize(vectors.double(), dim=1).mean(0).square().sum())


def linear_cka(one: Float[Tensor, "n c"], other: Float[Tensor, "n d"]) -> float:
    """Compute linear CKA, a similarity of representations in [0, 1] (arXiv:1905.00414, eq. 7).

    It is invariant to rotation and isotropic scaling, and 0 if either representation is constant.
    """
    a, b = (vectors.double() - vectors.double().mean(0) for vectors in (one, other))
    both = torch.linalg.norm(a.T @ b) ** 2
    alone = torch.linalg.norm(a.T @ a) * torch.linalg.norm(b.T @ b)
    return float(both / alone) if alone > 0 else 0.0


def content_cka(
    one: Float[Tensor, "groups n c"], other: Float[Tensor, "groups n d"]
) -> float | None:
    """Compute debiased CKA of centred unit vectors in groups; None if it is undefined.

    The vectors of a group are of different images at one place of the feature map. Only they are
    compared, so that nothing counts but which images look alike there: not the place itself, whose
    padding all networks see, nor that neighbouring pixels are similar. Unlike :func:`linear_cka`
    the value is 0 on average for unrelated representations, however few the vectors are
    (arXiv:2010.15327, eq. 2 and 3); it may be negative.

    Args:
        one: At least 4 vectors in each group.
        other: Vectors of the same places, of another model.
    """
    a, b = (_centred_gram(vectors) for vectors in (one, other))
    a_alone, b_alone = (a * a).sum(), (b * b).sum()
    if not (a_alone > 0 and b_alone > 0):
        return None
    return float((a * b).sum() / (a_alone * b_alone).sqrt())


def _centred_gram(vectors: Float[Tensor, "groups n c"]) -> Float[Tensor, "groups n n"]:
    """Return the U-centred Gram matrix of each group (arXiv:1310.2055, eq. 2.1)."""
    count = vectors.shape[1]
    centred = F.normalize(vectors - vectors.mean(1, keepdim=True), dim=2)
    others = 1 - torch.eye(count, dtype=torch.float64, device=vectors.device)
    gram = (centred @ centred.mT).double() * others
    rows = gram.sum(2, keepdim=True) / (count - 2)
    total = rows.sum((1, 2), keepdim=True) / (count - 1)
    return (gram - rows - rows.mT + total) * others


def own_pixel_retrieval(
    predicted: Float[Tensor, "n d chosen"],
    teacher: Float[Tensor, "n d pixels"],
    places: Int64[Tensor, " chosen"],
    keys: Float[Tensor, "k d"],
) -> float:
    """Measure how often a predicted pixel is nearest to the teacher's pixel at its own place.

    The candidates, by cosine similarity, are all pixels of the teacher's map of the same image and
    the keys; a guess is right once in ``pixels + k`` times.

    Args:
        predicted: Predictions of some pixels of each image, in the teacher's space.
        teacher: The teacher's whole maps of these images.
        places: Places of the predicted pixels in the maps.
        keys: Vectors of other images.

    Returns:
        The fraction in [0, 1].
    """
    queries = F.normalize(predicted, dim=1).mT
    own = queries @ F.normalize(teacher, dim=1)
    others = queries @ F.normalize(keys, dim=1).T
    return float((torch.cat([own, others], 2).argmax(2) == places).float().mean())


def pixel_retrieval(
    student: Float[Tensor, "n c pixels"],
    teacher: Float[Tensor, "n d pixels"],
    *,
    k: int = 5,
    watch: ProgressWrapper = iter,
) -> float:
    """Measure how often the teacher's nearest neighbour is among the student's ``k`` nearest.

    Neighbours of a pixel are searched by cosine similarity among the pixels of all other images,
    separately for student and teacher, so their numbers of channels may differ.

    Returns:
        The fraction of pixels for which this is the case, in [0, 1].
    """
    count, _, pixels = student.shape
    images = torch.arange(count).repeat_interleave(pixels)
    student_unit, teacher_unit = (
        F.normalize(maps.transpose(1, 2).flatten(0, 1).float(), dim=1)
        for maps in (student, teacher)
    )
    hits = 0
    for rows in watch(torch.arange(len(images)).split(1024)):
        same_image = images[rows, None] == images
        target = (teacher_unit[rows] @ teacher_unit.T).masked_fill(same_image, -2).argmax(1)
        similarity = (student_unit[rows] @ student_unit.T).masked_fill(same_image, -2)
        nearest = similarity.topk(k, dim=1).indices
        hits += int((nearest == target[:, None]).any(1).sum())
    return hits / len(images)


class PixelRelations(NamedTuple):
    """Relations of each pixel to the pixels of all other images, by cosine similarity."""

    nearest: Int64[Tensor, " rows"]
    """Position of the most similar pixel."""
    profiles: Float[Tensor, "rows rows"]
    """Centred similarities to all pixels, as unit vectors; 0 for pixels of the same image."""


def pixel_relations(maps: Float[Tensor, "n c pixels"]) -> PixelRelations:
    """Compare each pixel with those of all other images.

    The dot product of two models' profiles of a pixel says whether both find the same pixels
    similar: its mean is linear CKA (arXiv:1905.00414) of unit vectors, pixel by pixel and without
    pairs from one image. Profiles are centred as CKA's kernel matrices, by rows and columns.
    """
    count, _, pixels = maps.shape
    images = torch.arange(count, device=maps.device).repeat_interleave(pixels)
    same_image = images[:, None] == images
    unit = F.normalize(maps.transpose(1, 2).flatten(0, 1).float(), dim=1)
    similarity = unit @ unit.T
    rows, columns = similarity.mean(1, keepdim=True), similarity.mean(0, keepdim=True)
    centred = similarity - rows - columns + similarity.mean()
    return PixelRelations(
        nearest=similarity.masked_fill(same_image, -2).argmax(1),
        profiles=F.normalize(centred.masked_fill(same_image, 0), dim=1, eps=1e-3),  # 0 if constant
    )
