"""Option names of the previous release, which are still accepted.

Remove an entry one release after its rename.
"""

from collections.abc import Collection, Mapping
from typing import Any

_SCHEDULE = (
    *("reference_batch_size", "global_batch_size", "lr", "lr_per_256", "lr_drops", "epochs"),
    *("iterations", "momentum", "weight_decay", "warmup_iterations", "warmup_factor", "power"),
)

OLD_NAMES = {
    "output_dir": "run.output_dir",
    "run.sync_batch_norm": "optim.sync_batch_norm",
    "seed": "run.seed",
    "seeds": "run.seeds",
    "source": "data.source",
    "image_size": "data.image_size",
    "images": "data.num_images",
    "teacher": "teacher.source",
    "report.teacher": "teacher.source",
    "report.images": "report.num_images",
    "probe.learning_rate": "probe.lr",
    "data.root": "data.source",
    "data.train": "data.train_split",
    "data.val": "data.test_split",
    "data.val_images": "data.test_images",
    "data.val_annotations": "data.test_annotations",
    "schedule.drops": "optim.lr_drops",
    **{f"schedule.{name}": f"optim.{name}" for name in _SCHEDULE},
}
"""Current names by old names, as ``group.field``."""

REMOVED = frozenset({"run.name", "run.store"})
"""Fields that some recipes had but never used; ignored in files where the recipe lacks them."""


def current_name(name: str, known: Collection[str]) -> str:
    """Return the current name of an option missing from ``known``; ``name`` if it has none."""
    today = OLD_NAMES.get(name, "")
    return today if today in known else name


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as ``{"group.field": value}``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def with_current_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration under the names of a current one.

    Args:
        old: The configuration stored in a checkpoint, nested by group.
        new: A configuration of the same recipe in this release.

    Returns:
        ``old``, flat, as ``{"group.field": value}``.
    """
    known = flat(new)
    renamed = {n if n in known else current_name(n, known): v for n, v in flat(old).items()}
    return {n: v for n, v in renamed.items() if n in known or n not in REMOVED}
