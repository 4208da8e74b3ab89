"""Measure the features of student and teacher and the keys during a run, without labels."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from pcd_hub.data.loader import Batch
from pcd_hub.method.distiller import Distiller
from pcd_hub.method.metrics import (
    content_cka,
    effective_rank,
    mean_cosine,
    own_pixel_retrieval,
    retrieval_top1,
)
from pcd_hub.method.queue import KeyQueue
from pcd_hub.method.resampling import resample
from pcd_hub.train.batches import pair_views
from pcd_hub.train.distillation.state import Distillation

MAX_VECTORS = 256
"""Vectors of each metric; their time does not depend on the size of the batch."""
_MAX_IMAGES = 32
"""Images of each view, so that the rest of ``MAX_VECTORS`` are places in their maps."""
_MIN_IMAGES = 8
"""Images of a batch below which they are not compared with each other."""
_VIEW_IMAGES = 16
"""Images whose views the teacher must match: always as many, as more of them are harder."""


class _Maps(NamedTuple):
    """Feature maps of some images: all first views, then all second views."""

    student: Float[Tensor, "n c pixels"]
    teacher: Float[Tensor, "n d pixels"]
    predicted: Float[Tensor, "n d predicted"]
    """Output of the student's head: one vector per image if the loss takes pooled ones."""


@dataclass
class FeatureMonitor:
    """Metrics of a sample of the last batch and of the newest keys.

    They draw no random numbers and change no module.
    """

    distiller: Distiller
    queue: KeyQueue | None
    _: KW_ONLY
    own_keys: int = 0
    """Newest keys that belong to the last batch; they are no negatives of its images."""
    crossed: bool = False
    """Whether each view was paired with the teacher's map of the other view."""
    comparable: bool = True
    """Whether the head's output lies in the teacher's space."""
    expected_targets: Callable[[Batch], Tensor] | None = None
    """Computes the targets of a batch by the teacher itself; None after the first measurement."""
    _last_keys: Tensor | None = None

    @torch.no_grad()
    def measure(self, gradient_norm: Tensor, batch: Batch) -> dict[str, float]:
        """Return the metrics of this process's part of the batch; call it on the main process.

        - ``target_cosine``: mean cosine of the loss's targets with the feature maps that the
          teacher computes for the same images; in the first measurement alone
        - ``gradient_norm``: the norm of the step's gradient, unless fp16 has overflowed
        - ``pixel_rank``, ``teacher_rank``: effective rank of the student's and teacher's pixels
        - ``pixel_cosine``, ``teacher_cosine``: mean cosine of the student's pixels, and of the
          teacher's mean vectors of different images
        - ``teacher_views``: share of the images whose other view is the nearest of 16, by the
          teacher's mean vectors
        - ``pixel_cka``: CKA of student and teacher (:func:`content_cka`)
        - ``pixel_top1``: share of the student's pixels whose nearest teacher vector is that at the
          same place, among those of the image and keys; ``pixel_chance``: that of a guess
        - ``key_cosine``: mean cosine of the batch's keys; ``new_keys``: share of the newest keys
          that the last measurement did not see
        """
        maps = self._sample()
        if not all(bool(torch.isfinite(each).all()) for each in maps):
            return {}  # LossMonitor raises, one step later on an accelerator
        norm = float(gradient_norm)
        return {
            **self._compare_targets(batch),
            **({"gradient_norm": norm} if math.isfinite(norm) else {}),
            **_describe(maps),
            **(self._search(maps) if self.comparable else {}),
            **self._measure_keys(),
        }

    def _compare_targets(self, batch: Batch) -> dict[str, float]:
        if self.expected_targets is None:
            return {}
        expected, self.expected_targets = self.expected_targets(batch), None
        used = self.distiller.last_feature_maps[1]
        expected = resample(expected, (used.shape[2], used.shape[3]))
        return {"target_cosine": F.cosine_similarity(used.float(), expected.float()).mean().item()}

    def _sample(self) -> _Maps:
        student, teacher = self.distiller.last_feature_maps
        if self.crossed:
            teacher = teacher.roll(len(teacher) // 2, 0)
        images = _spread(len(student) // 2, _MAX_IMAGES)
        images = torch.cat([images, images + len(student) // 2]).to(student.device)
        maps = (student, teacher, self.distiller.last_prediction)
        return _Maps(*(each[images].flatten(2).float() for each in maps))

    def _search(self, maps: _Maps) -> dict[str, float]:
        teacher = maps.teacher
        if self.distiller.pooled:
            teacher = teacher.mean(2, keepdim=True)
        places = _places(teacher)
        keys = teacher.new_zeros(0, teacher.shape[1])
        if self.queue is not None:
            keys = self.queue.newest(self.own_keys + MAX_VECTORS)[self.own_keys :].float()
        candidates = teacher.shape[2] + len(keys)
        if candidates < 2:
            return {}
        found = own_pixel_retrieval(maps.predicted[..., places], teacher, places, keys)
        return {"pixel_top1": found, "pixel_chance": 1 / candidates}

    def _measure_keys(self) -> dict[str, float]:
        if self.queue is None:
            return {}
        keys, last_keys = self.queue.newest(MAX_VECTORS).float().cpu(), self._last_keys
        own = keys[: self.own_keys or None]  # those before may be the random ones of the start
        self._last_keys, measured = keys, {"key_cosine": mean_cosine(own)}
        if last_keys is not None:
            known = (keys[:, None, :2] == last_keys[:, :2]).all(2).any(1)
            measured["new_keys"] = 1 - float(known.float().mean())
        return measured


def feature_monitor(d: Distillation) -> FeatureMonitor:
    """Return the monitor of a distillation."""
    views = d.config.method.views

    def expected_targets(batch: Batch) -> Tensor:
        with d.accelerator.autocast():
            targets = d.teacher(d.normalise.images(batch))
        if d.moments is not None:
            targets = d.moments.standardise(targets)
        return pair_views(targets, views)

    return FeatureMonitor(
        d.distiller,
        d.queue,
        own_keys=d.config.optim.global_batch_size,
        crossed=views == "cross",
        comparable=d.config.method.loss != "similarity_kl",
        expected_targets=expected_targets,
    )


def _describe(maps: _Maps) -> dict[str, float]:
    """Return the metrics that need no head."""
    places = _places(maps.student)
    student, teacher = (each[..., places].mT.cpu() for each in (maps.student, maps.teacher))
    metrics = {
        "pixel_rank": effective_rank(student.flatten(0, 1)),
        "pixel_cosine": mean_cosine(student.flatten(0, 1)),
        "teacher_rank": effective_rank(teacher.flatten(0, 1)),
    }
    half = len(student) // 2
    if half < _MIN_IMAGES:
        return metrics
    one, other = (_by_place(vectors, half) for vectors in (student, teacher))
    if (cka := content_cka(one, other)) is not None:
        metrics["pixel_cka"] = cka
    cosine = mean_cosine(maps.teacher[:half].mean(2).cpu())
    return metrics | {
        "teacher_cosine": (cosine * half - 1) / (half - 1),  # without each with itself
        "teacher_views": _match_views(maps.teacher),
    }


def _by_place(vectors: Float[Tensor, "n places c"], half: int) -> Float[Tensor, "groups half c"]:
    """Group the vectors by view and place."""
    return vectors.unflatten(0, (2, half)).transpose(1, 2).flatten(0, 1)


def _match_views(maps: Float[Tensor, "n c pixels"]) -> float:
    first, second = maps.mean(2).cpu().split(len(maps) // 2)
    some = _spread(len(first), _VIEW_IMAGES)
    return retrieval_top1(first[some], second[some])


def _places(maps: Float[Tensor, "n c pixels"]) -> Int64[Tensor, " places"]:
    """Return places spread evenly over the map, so many that all images have ``MAX_VECTORS``."""
    return _spread(maps.shape[2], max(1, MAX_VECTORS // len(maps))).to(maps.device)


def _spread(count: int, most: int) -> Int64[Tensor, " chosen"]:
    """Return at most ``most`` of the numbers below ``count``, spread evenly."""
    return torch.linspace(0, count - 1, min(count, most)).long()
