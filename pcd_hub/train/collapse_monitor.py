"""Names a student that collapses and a queue that died, while there is time to stop the run."""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from pcd_hub.method.distiller import Distiller
from pcd_hub.method.metrics import effective_rank, mean_cosine
from pcd_hub.method.queue import KeyQueue

log = logging.getLogger("pcd_hub")

_SAMPLES, _FEWEST = 256, 8
_ALL_ALIKE = 0.99
"""Mean cosine; healthy students have 0.05 to 0.65."""
_OF_TEACHER = 0.25
"""Effective rank; healthy students have about half the teacher's or more, ResNet-18 three times."""


class CollapseMonitor:
    """Looks at a few of the last pixels and keys; says each thing once.

    Args:
        distiller: Not wrapped.
        queue: Of negatives, if there is one.
        patience: Steps in which a student whose pixels start all alike must tell them apart.
    """

    def __init__(self, distiller: Distiller, queue: KeyQueue | None, *, patience: int) -> None:
        self._distiller = distiller
        self._queue = queue
        self._patience = patience
        self._was_alive = False
        self._keys: Tensor | None = None
        self._said: set[str] = set()

    def look(self, step: int) -> dict[str, float]:
        """Effective rank and mean cosine of the student's pixels, mean cosine of the queue's keys.

        Args:
            step: From 0; called by the main process, of its own part of the batch.
        """
        pixels, targets = map(_some, self._distiller.last_pixels)
        if not all(bool(torch.isfinite(vectors).all()) for vectors in (pixels, targets)):
            return {}  # the loss watch says so, beside an accelerator one step later
        if len(pixels) < _FEWEST:  # too few to tell
            return self._look_at_queue(step)
        rank, of_teacher, cosine = (
            effective_rank(pixels),
            effective_rank(targets),
            mean_cosine(pixels),
        )
        alive = cosine <= _ALL_ALIKE and rank >= _OF_TEACHER * of_teacher
        if not alive and (self._was_alive or step >= self._patience):
            self._say(
                step,
                f"the student has collapsed: its pixels have a mean cosine of {cosine:.4f} (at "
                f"most {_ALL_ALIKE}) and an effective rank of {rank:.1f} (the teacher's "
                f"{of_teacher:.1f}, at least {_OF_TEACHER} of it); stop, and lower "
                "--optim.lr-per-256",
            )
        self._was_alive |= alive
        return {"pixel_rank": rank, "pixel_cosine": cosine} | self._look_at_queue(step)

    def _look_at_queue(self, step: int) -> dict[str, float]:
        if self._queue is None:
            return {}
        keys, before = self._queue.newest(_SAMPLES).float().cpu(), self._keys
        self._keys, cosine = keys, mean_cosine(keys)
        if cosine > _ALL_ALIKE:
            self._say(
                step,
                f"the queue is dead: its keys are all alike (mean cosine {cosine:.4f}, bound "
                f"{_ALL_ALIKE}), so there is nothing to contrast with; the images are all alike to "
                "this teacher: look at --data.source, or take another --teacher.source",
            )
        elif before is not None and torch.equal(keys, before):
            self._say(step, "the queue is dead: it has taken no new keys; please report it")
        return {"key_cosine": cosine}

    def _say(self, step: int, what: str) -> None:
        kind = what.split(":", maxsplit=1)[0]
        if kind not in self._said:
            log.warning("step %d: %s", step, what)
            self._said.add(kind)


def _some(pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c"]:
    """Evenly spread over the batch."""
    vectors = pixels.flatten(2).mT.flatten(0, 1)
    places = torch.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLES))
    return vectors[places.long().to(vectors.device)].float().cpu()
