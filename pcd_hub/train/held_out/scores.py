"""Scores of one student on the held-out images, and their comparison image by image."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

NOISE = 2.0
"""Standard errors of a difference that count as noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of the student after ``step`` steps."""

    step: int
    retrieval: tuple[float, ...]
    """For each image: % of its pixels whose most similar pixel of another image is the one that
    the teacher finds most similar. It needs no head, so it also rates a student before training."""
    cka: tuple[float, ...]
    """For each image: linear CKA in %, pixel by pixel (``PixelRelations``): whether the student
    finds the same pixels similar as the teacher does. It needs no head either."""
    loss: tuple[float, ...]
    """For each image: the loss of distillation, with student head, against the other images."""
    effective_rank: float
    """Effective rank of the student's pixels."""

    def means(self) -> dict[str, float]:
        """Return the scores by name, means over the images."""
        return {
            "retrieval": statistics.fmean(self.retrieval),
            "cka": statistics.fmean(self.cka),
            "effective_rank": self.effective_rank,
            "loss": statistics.fmean(self.loss),
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Build scores from a dict of their fields, as in a checkpoint."""
        return cls(**raw)


FEW_IMAGES = 20
"""Held-out images from which a verdict carries weight; not measured."""


class Difference(NamedTuple):
    """A mean difference over the images, with its standard error."""

    mean: float
    standard_error: float

    @property
    def is_noise(self) -> bool:
        """Whether the difference is within ``NOISE`` standard errors of 0."""
        return abs(self.mean) <= NOISE * self.standard_error


def paired_difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Compare the values of the same images: mean of ``one - other``, and its standard error."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean = statistics.fmean(differences)
    return Difference(mean, statistics.stdev(differences) / math.sqrt(len(differences)))


class Verdict(NamedTuple):
    """Whether the student agrees better with the teacher than its start."""

    outcome: Literal["better", "within noise", "worse"]
    sentence: str


def compare_with_start(start: Scores, student: Scores, *, start_name: str) -> Verdict:
    """Compare the student with its start by CKA with the teacher, image by image.

    The loss cannot be compared: the head of the start is not trained. Retrieval can, but differs
    less clearly: by 3 standard errors where CKA differs by 19 (ResNet-18 after 300 steps). If
    CKA rises while retrieval falls, the student does not count as better.

    Args:
        start: Scores of the student before training.
        student: Scores of the trained student.
        start_name: Name of the start in the sentence, such as "random weights".
    """
    difference = paired_difference(student.cka, start.cka)
    before, after = start.means(), student.means()
    numbers = (
        f"CKA with the teacher {after['cka']:.1f} %, of the start {before['cka']:.1f} % "
        f"({difference.mean:+.1f} ± {difference.standard_error:.1f}, standard error); the most "
        f"similar pixel is the teacher's for {after['retrieval']:.1f} % of the pixels, of the "
        f"start {before['retrieval']:.1f} %"
    )
    images = f"on {len(student.cka)} held-out images"
    if len(student.cka) < FEW_IMAGES:
        images += " (few, so it may be chance)"
    retrieval = paired_difference(student.retrieval, start.retrieval)
    if not difference.is_noise and difference.mean > 0 > retrieval.mean:
        text = f"the scores do not agree whether the student is better than its {start_name}"
        return Verdict("within noise", f"{text} {images}: {numbers}")
    if difference.is_noise:
        text = f"the student differs from its {start_name} only within noise {images}: {numbers}"
        return Verdict("within noise", text)
    outcome = "better" if difference.mean > 0 else "worse"
    text = f"the student agrees with the teacher {outcome} than its {start_name} {images}"
    return Verdict(outcome, f"{text}: {numbers}")
