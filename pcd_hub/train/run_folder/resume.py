"""What may change between a checkpoint and the run that goes on from it.

Everything that may is in :data:`MAY_CHANGE`; any other setting is refused by its name. What did
change is written into the run's folder, its later checkpoints and its record.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from pcd_hub.errors import CheckpointError
from pcd_hub.evaluate.models import EvaluatedModel

LENGTH = ("run.max_steps", "optim.epochs")
"""How long the run is. Learning rate and momentum follow the new length from the next step on."""

MAY_CHANGE = frozenset(
    {
        *LENGTH,
        # where the result goes, and what is said of it
        *("run.name", "run.store", "run.trackers", "probe_scenes"),
        *("run.log_every_steps", "run.checkpoint_every_steps", "run.keep_checkpoints"),
        # speed, which changes numbers by rounding alone
        *("data.num_workers", "speed.compile", "speed.channels_last", "speed.foreach"),
        "speed.keep_memory",
    }
)

_MAY_BE_ACCEPTED = ("data", "test data", "teacher")

Change = dict[str, Any]
"""``after_step``, ``what``, ``from``, ``to``."""


class LabelledSet(Protocol):
    """Images with labels."""

    def fingerprint(self) -> str:
        """Return a short text that changes when the set does."""
        ...


def labelled_inputs(
    backbone: EvaluatedModel, train_set: LabelledSet, test_set: LabelledSet
) -> dict[str, str]:
    """Return the fingerprints of a run on labels, for :meth:`RunFolder.open`."""
    sha256 = backbone.weights_sha256
    weights = f"weights sha256 {sha256}" if sha256 else "no stored weights"
    return {
        "backbone": f"{backbone.name}, {weights}",
        "data": train_set.fingerprint(),
        "test data": test_set.fingerprint(),
    }


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], *, step: int) -> list[Change]:
    """What differs between two resolved configurations.

    Args:
        old: Of the checkpoint.
        new: Of this run.
        step: Steps that are done.

    Raises:
        CheckpointError: If something differs that is not in :data:`MAY_CHANGE`.
    """
    changes = []
    for name, before, now in _differences(old, new):
        if name not in MAY_CHANGE:
            raise CheckpointError(
                f"the checkpoint after step {step} was written with another {option(name)} "
                f"({before}, now {now}); resume with the same settings"
            )
        changes.append({"after_step": step, "what": option(name), "from": before, "to": now})
    return changes


def changed_inputs(
    old: Mapping[str, str], new: Mapping[str, str], *, step: int, accept: bool
) -> list[Change]:
    """Which inputs of a run are no longer those it began with.

    Args:
        old: Fingerprints of the checkpoint, by name.
        new: Of this run.
        step: Steps that are done.
        accept: Whether the images and the teacher may have changed.

    Raises:
        CheckpointError: If one has changed and is not accepted.
    """
    changes = []
    for name, now in new.items():
        if (before := old.get(name, now)) == now:
            continue
        if not (accept and name in _MAY_BE_ACCEPTED):
            or_accept = ", or add --run.accept-changed-data" if name in _MAY_BE_ACCEPTED else ""
            raise CheckpointError(
                f"the {name} changed after step {step}: the run began with {before}, now there is "
                f"{now}; put back what was there, or start anew in another folder{or_accept}"
            )
        changes.append({"after_step": step, "what": name, "from": before, "to": now})
    return changes


def protocol_note(changes: list[Change]) -> str:
    """The end of a sentence on how a model was trained; empty if nothing that matters changed."""
    matters = {*map(option, LENGTH), *_MAY_BE_ACCEPTED}
    return "".join(
        f"; resumed after step {change['after_step']} with another {change['what']} "
        f"({change['from']}, now {change['to']})"
        for change in changes
        if change["what"] in matters
    )


def check_length(step: int, steps: int) -> None:
    """Refuse an end that has been passed.

    Raises:
        CheckpointError: If more steps are done than the run would have.
    """
    if step > steps:
        raise CheckpointError(
            f"{step} steps are done, and the run would end after {steps}; "
            "resume with a longer --run.max-steps or more epochs"
        )


def load_parts(checkpoint: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Load the state of every part.

    Raises:
        CheckpointError: If the checkpoint lacks one, or it does not fit.
    """
    for name, part in parts.items():
        try:
            part.load_state_dict(checkpoint[name])
        except (KeyError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the checkpoint after step {checkpoint['step']} does not fit this run's {name} "
                f"({type(error).__name__}: {told}); start anew in another folder"
            ) from error


def option(name: str) -> str:
    """``run.max_steps`` as it stands on the command line."""
    return f"--{name.replace('_', '-')}"


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            difference
            for key in {**old, **new}
            for difference in _differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if old == new else [(path, old, new)]
