"""What evaluations of frozen backbones share, and scoring over several seeds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pcd_hub.evaluate.models import EvaluatedModel, for_each_seed
from pcd_hub.evaluate.results import Evaluation, ModelScores


class Benchmark(ABC):
    """An evaluation of frozen backbones on one set of images."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """One sentence with every choice that affects the scores."""

    @abstractmethod
    def score(self, name: str, seeds: Sequence[int] = (0,)) -> ModelScores:
        """Open a model by name (:func:`~pcd_hub.evaluate.models.open_model`) and score it."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return task, version of the protocol, images and units: fields of the results table."""

    def empty_table(
        self,
        seeds: Sequence[int] = (0,),
        *,
        command: str = "pcd_hub.evaluate, from Python",
        details: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """Return an empty results table.

        Args:
            seeds: Seeds at which the models will be scored.
            command: The command that reproduces the table.
            details: Facts to store with the table, e.g. versions and hardware.
        """
        return Evaluation(
            **self.facts(),
            protocol=self.protocol,
            command=command,
            seeds=tuple(seeds),
            scores={},
            details=dict(details or {}),
        )


def scores_by_seed(
    name: str,
    seeds: Sequence[int],
    measure: Callable[[EvaluatedModel], dict[str, float]],
    *,
    image_size: int,
) -> ModelScores:
    """Score a model at every seed; a model with pretrained weights is measured only once."""
    runs = list(for_each_seed(name, seeds, measure, image_size=image_size))
    return ModelScores(
        name=name,
        metrics={metric: tuple(scores[metric] for _, _, scores in runs) for metric in runs[0][2]},
        weights_sha256=runs[0][1].weights_sha256,
        architecture=runs[0][1].architecture,
    )
