"""Save the scores of a model that was trained on labels, as evaluation.json."""

from collections.abc import Mapping
from typing import Any

from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.resume import protocol_note


def save_evaluation(
    scores: Mapping[str, float],
    *,
    task: str,
    dataset: str,
    protocol: str,
    protocol_version: int,
    command: str,
    num_images: int,
    data_sha256: str,
    seed: int,
    evaluated: EvaluatedModel,
    folder: RunFolder,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write evaluation.json and print its table.

    Args:
        scores: Score in % by metric.
        task: Name of the task, for the table's title.
        dataset: Data set and split.
        protocol: One sentence with every choice that changes the scores.
        protocol_version: Version of the evaluation's implementation.
        command: Command that repeats the run.
        num_images: Images that were scored.
        data_sha256: sha256 of the fingerprints of both splits, all training images included.
        seed: Seed of the run.
        evaluated: The backbone.
        folder: The run's folder.
        details: Further results of this model, in plain containers.
    """
    evaluation = Evaluation(
        task=task,
        dataset=dataset,
        protocol=protocol + protocol_note(folder.changes),
        protocol_version=protocol_version,
        command=command,
        images=num_images,
        seeds=(seed,),
        data_sha256=data_sha256,
        units=dict.fromkeys(scores, "%"),
        scores={},
        details=folder.provenance() | folder.recorded_changes(),
    ).with_model(
        evaluated.name,
        {name: (value,) for name, value in scores.items()},
        weights_sha256=evaluated.weights_sha256,
        details=dict(details or {}),
    )
    evaluation.save(folder.path)
    print(f"\n{evaluation.table()}\n\nin {folder.path}")
