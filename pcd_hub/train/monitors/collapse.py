"""Warn about a collapsed student or a key queue that no longer changes."""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from pcd_hub.method.distiller import Distiller
from pcd_hub.method.metrics import effective_rank, mean_cosine
from pcd_hub.method.queue import KeyQueue

log = logging.getLogger("pcd_hub")

_MAX_SAMPLES, _MIN_SAMPLES = 256, 8
_MAX_COSINE = 0.99
"""Mean cosine similarity; healthy students have 0.05 to 0.65."""
_MIN_RANK_RATIO = 0.25
"""Effective rank, student / teacher; healthy students have about 0.5 or more, ResNet-18 has 3."""


class CollapseMonitor:
    """Monitor of a sample of the student's last feature vectors and of the newest keys.

    Each warning is logged once.

    Args:
        distiller: The unwrapped distiller.
        queue: Key queue, if the loss has one.
        patience: Number of steps before a student whose feature vectors have been nearly identical
            from the start is reported.
    """

    def __init__(self, distiller: Distiller, queue: KeyQueue | None, *, patience: int) -> None:
        self._distiller = distiller
        self._queue = queue
        self._patience = patience
        self._was_healthy = False
        self._last_keys: Tensor | None = None
        self._logged: set[str] = set()

    def measure(self, step: int) -> dict[str, float]:
        """Measure the student's effective rank and mean cosine, and the mean cosine of the keys.

        Args:
            step: Number of the step, from 0.

        Returns:
            The metrics of this process's part of the batch; call it on the main process.
        """
        student, teacher = map(_sample, self._distiller.last_feature_maps)
        if not all(bool(torch.isfinite(vectors).all()) for vectors in (student, teacher)):
            return {}  # LossMonitor raises, one step later on an accelerator
        if len(student) < _MIN_SAMPLES:
            return self._measure_queue(step)
        rank, teacher_rank = effective_rank(student), effective_rank(teacher)
        cosine = mean_cosine(student)
        healthy = cosine <= _MAX_COSINE and rank >= _MIN_RANK_RATIO * teacher_rank
        if not healthy and (self._was_healthy or step >= self._patience):
            self._warn(
                step,
                f"the student has collapsed: its feature vectors have a mean cosine of "
                f"{cosine:.4f} (expected at most {_MAX_COSINE}) and an effective rank of "
                f"{rank:.1f} (expected at least {_MIN_RANK_RATIO} of the teacher's "
                f"{teacher_rank:.1f}); stop the run and lower --optim.lr-per-256",
            )
        self._was_healthy |= healthy
        return {"pixel_rank": rank, "pixel_cosine": cosine} | self._measure_queue(step)

    def _measure_queue(self, step: int) -> dict[str, float]:
        if self._queue is None:
            return {}
        keys, last_keys = self._queue.newest(_MAX_SAMPLES).float().cpu(), self._last_keys
        self._last_keys, cosine = keys, mean_cosine(keys)
        if cosine > _MAX_COSINE:
            self._warn(
                step,
                f"the key queue is degenerate: its keys have a mean cosine of {cosine:.4f} "
                f"(expected at most {_MAX_COSINE}), so there are no useful negatives; this teacher "
                "maps all images to the same vector: check --data.source, or use another "
                "--teacher.source",
            )
        elif last_keys is not None and torch.equal(keys, last_keys):
            self._warn(step, "the key queue received no new keys; please report this bug")
        return {"key_cosine": cosine}

    def _warn(self, step: int, message: str) -> None:
        kind = message.split(":", maxsplit=1)[0]
        if kind not in self._logged:
            log.warning("step %d: %s", step, message)
            self._logged.add(kind)


def _sample(feature_map: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c"]:
    """Take vectors at locations spread evenly over the batch."""
    vectors = feature_map.flatten(2).mT.flatten(0, 1)
    rows = torch.linspace(0, len(vectors) - 1, min(len(vectors), _MAX_SAMPLES))
    return vectors[rows.long().to(vectors.device)].float().cpu()
