"""Score the student on the held-out images, without changing anything of the run."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from torch import Tensor

from pcd_hub.method.distiller import Distiller
from pcd_hub.method.metrics import PixelRelations, effective_rank, pixel_relations
from pcd_hub.method.moments import ChannelMoments
from pcd_hub.method.resampling import resample
from pcd_hub.train.held_out.scores import Scores
from pcd_hub.train.held_out.unchanged import unchanged

MAX_PIXELS = 2048
"""Pixels that are compared with each other, of all images together."""
_MAX_VECTORS = 1024
"""Pixels for the effective rank, whose cost grows with their cube."""


class _Features(NamedTuple):
    """What is kept of the feature maps of all images, on the CPU."""

    pixels: Float[Tensor, "n c pixels 1"]
    """A sample of the pixels of each map."""
    means: Float[Tensor, "n c 1 1"]
    size: tuple[int, int]
    """Height and width of the maps."""


class _Targets(NamedTuple):
    """The teacher's part of every score, which is computed once."""

    maps: Float[Tensor, "n d h w"]
    """Targets of the loss: a sample of the pixels, or one mean vector per image."""
    keys: Float[Tensor, "n d"]
    """Mean vector of every image: negatives of the other images."""
    relations: PixelRelations


@dataclass(kw_only=True)
class Scorer:
    """Scores of the current student on the held-out images; only the main process needs one."""

    accelerator: Accelerator
    images: UInt8[Tensor, "n bands height width"]
    distiller: Distiller
    """Student, head and loss, not wrapped."""
    teacher: Callable[[Tensor], Tensor]
    """Images in [0, 1] -> feature maps of any size."""
    normalise: Callable[[Tensor], Tensor]
    """The student's normalisation of images in [0, 1]."""
    negatives: bool
    """Whether the loss takes negatives."""
    moments: ChannelMoments | None
    """How the loss's targets are centred or standardised; here over these images."""
    batch_size: int
    memory_format: torch.memory_format = torch.contiguous_format
    _targets: _Targets | None = None

    def score(self, step: int) -> Scores | None:
        """Score the student after ``step`` steps; None if its features are not finite."""
        with torch.no_grad(), unchanged(self.distiller, self.accelerator.device):
            pixels, means, size = self._features(
                lambda images: self.distiller.student(self.normalise(images))
            )
            if self._targets is None:
                self._targets = self._teacher_targets(size)
            targets = self._targets
            if not bool(torch.isfinite(pixels).all()):
                return None  # the run is about to stop
            losses = self._losses(means if self.distiller.pooled else pixels, targets)
        if not all(map(math.isfinite, losses)):
            return None
        relations = pixel_relations(pixels.flatten(2))
        hits = relations.nearest == targets.relations.nearest
        agreement = (relations.profiles * targets.relations.profiles).sum(1)
        retrieval, cka = (
            100 * values.double().view(len(pixels), -1).mean(1) for values in (hits, agreement)
        )
        return Scores(
            step=step,
            retrieval=tuple(retrieval.tolist()),
            cka=tuple(cka.tolist()),
            loss=tuple(losses),
            effective_rank=effective_rank(_some_vectors(pixels)),
        )

    def _batches(self) -> Iterator[Float[Tensor, "b bands height width"]]:
        for part in self.images.split(self.batch_size):
            images = part.to(self.accelerator.device) / 255
            yield images.contiguous(memory_format=self.memory_format)

    def _features(self, network: Callable[[Tensor], Tensor]) -> _Features:
        count, size, pixels, means = len(self.images), (0, 0), [], []
        for images in self._batches():
            with self.accelerator.autocast():
                maps = network(images).float()
            size = (maps.shape[2], maps.shape[3])
            pixels.append(_sample_pixels(maps, MAX_PIXELS // count).cpu())
            means.append(maps.mean((2, 3), keepdim=True).cpu())
        return _Features(torch.cat(pixels), torch.cat(means), size)

    def _teacher_targets(self, size: tuple[int, int]) -> _Targets:
        """Return the teacher's part at the size of the student's last map."""
        pixels, means, _ = self._features(lambda images: resample(self.teacher(images), size))
        vectors, averages = pixels, means
        if self.moments is not None:
            moments = self.moments.of_all(pixels)
            vectors, averages = moments.standardise(pixels), moments.standardise(means)
        return _Targets(
            maps=averages if self.distiller.pooled else vectors,
            keys=averages.flatten(1),
            relations=pixel_relations(pixels.flatten(2)),
        )

    def _losses(self, maps: Float[Tensor, "n c h w"], targets: _Targets) -> list[float]:
        """Return the loss of every image; its negatives are the mean vectors of all others."""
        with self.accelerator.autocast():
            predicted = self.distiller.head(maps.to(self.accelerator.device)).float().cpu()
        pairs = zip(predicted.split(1), targets.maps.split(1), strict=True)
        losses = []
        for image, (student, teacher) in enumerate(pairs):
            others = torch.cat([targets.keys[:image], targets.keys[image + 1 :]])
            negatives = (others,) if self.negatives else ()
            losses.append(float(self.distiller.loss(student, teacher, *negatives)))
        return losses


def _sample_pixels(maps: Float[Tensor, "n c h w"], count: int) -> Float[Tensor, "n c pixels 1"]:
    """Return ``count`` pixels spread evenly over each map, at least 2 if it has them."""
    pixels = maps.flatten(2)
    count = min(pixels.shape[2], max(2, count))
    places = torch.linspace(0, pixels.shape[2] - 1, count).round().long()
    return pixels[:, :, places.to(maps.device), None]


def _some_vectors(pixels: Float[Tensor, "n c pixels 1"]) -> Float[Tensor, "m c"]:
    """Return pixels spread evenly over all images, at most ``_MAX_VECTORS``."""
    vectors = pixels.squeeze(3).transpose(1, 2).flatten(0, 1)
    return vectors[:: -(-len(vectors) // _MAX_VECTORS)]
