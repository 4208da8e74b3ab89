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
_ALL_ALIKE = 0.99  # mean cosine; of ResNet-18 in the quickstart 0.33, at random start too
_FALL = 4  # quickstart: from 88 to 64 of 256; ten times its learning rate: to 16


class Health:
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
        self._best_rank = 0.0
        self._least_cosine = 1.0
        self._keys: Tensor | None = None
        self._said: set[str] = set()

    def look(self, step: int) -> dict[str, float]:
        """Effective rank and mean cosine of the student's pixels, mean cosine of the queue's keys.

        Args:
            step: From 0; called by each process of its own part of the batch.
        """
        pixels = _some(self._distiller.last_pixels.flatten(2).mT.flatten(0, 1))
        if len(pixels) < _FEWEST:  # too few to tell
            return self._look_at_queue(step)
        rank, cosine = effective_rank(pixels), mean_cosine(pixels)
        self._best_rank = max(self._best_rank, rank)
        self._least_cosine = min(self._least_cosine, cosine)
        if cosine > _ALL_ALIKE and (self._least_cosine < _ALL_ALIKE or step >= self._patience):
            self._say(
                step,
                f"the student has collapsed: its pixels are all alike (mean cosine {cosine:.4f}, "
                f"bound {_ALL_ALIKE}); stop, and lower --optim.lr-per-256",
            )
        elif rank < self._best_rank / _FALL:
            self._say(
                step,
                f"the student is collapsing: the effective rank of {len(pixels)} of its pixels "
                f"fell from {self._best_rank:.1f} to {rank:.1f}, below 1/{_FALL}; "
                "lower --optim.lr-per-256",
            )
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


def _some(vectors: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
    """Evenly spread over the batch."""
    places = torch.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLES))
    return vectors[places.long().to(vectors.device)].float().cpu()
