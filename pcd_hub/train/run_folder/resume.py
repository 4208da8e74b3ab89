"""Compare the settings and inputs of a checkpoint with those of the run that resumes from it.

Only the settings in :data:`MAY_CHANGE` may differ. Changes are saved in the run's folder, its later
checkpoints and its record.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Protocol

from pcd_hub.errors import CheckpointError
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.train.configs.flat import flat, is_removed
from pcd_hub.train.configs.labelled import ProbeDataConfig

LENGTH = ("run.max_steps", "optim.epochs")
"""Length of the run; a new length changes learning rate and momentum from the next step on."""

MAY_CHANGE = frozenset(
    {
        *LENGTH,
        # where images and teacher are now; the fingerprints show whether they are the same
        *("data.source", "teacher.source"),
        # name and location of the result, probes and logging
        *("run.name", "run.store", "run.trackers", "probe_scenes"),
        *(f"probe_data.{field.name}" for field in fields(ProbeDataConfig)),
        *("run.log_every_steps", "run.checkpoint_every_steps", "run.keep_checkpoints"),
        # scores on the held-out images, and the end of the run that they may decide
        *("run.measure_every_steps", "run.stop_on_plateau"),
        # performance, which changes values only by rounding, and those of resident images by
        # interpolation
        *("data.resident", "data.resident_side"),
        *("data.num_workers", "speed.compile", "speed.channels_last", "speed.foreach"),
        *("speed.keep_memory", "speed.precision"),
        # place and size of the cache; data.view_epochs are the views it has
        *("teacher.cache", "teacher.cache_gb"),
    }
)

MAY_BE_NEW = frozenset({"early_verdict", "probe_data"})
"""Parts of a run that a checkpoint may lack; they start anew then."""

FOLLOW_DATA = frozenset({"method.queue_length"})
"""Settings limited by the number of images; only the change of the data is recorded."""

_MAY_BE_ACCEPTED = ("data", "test data", "teacher")

_RESTORE = {"start": " (a shipped weight: with the version of pcd_hub that began the run)"}

Change = dict[str, Any]
"""A recorded change, with the keys ``after_step``, ``what``, ``from`` and ``to``."""


class LabelledSet(Protocol):
    """Images with labels."""

    def fingerprint(self) -> str:
        """Return a short string that changes when the set changes."""
        ...


def labelled_inputs(
    backbone: EvaluatedModel, train_set: LabelledSet, test_set: LabelledSet
) -> dict[str, str]:
    """Return the input fingerprints of a run on labels, for :meth:`RunFolder.open`."""
    sha256 = backbone.weights_sha256
    weights = f"weights sha256 {sha256}" if sha256 else "no stored weights"
    return {
        "backbone": f"{backbone.name}, {weights}",
        "data": train_set.fingerprint(),
        "test data": test_set.fingerprint(),
    }


def changed_settings(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    requested: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    step: int,
) -> list[Change]:
    """List the differences between the configuration of a checkpoint and this run's.

    Args:
        old: The checkpoint's configuration.
        new: This run's configuration, with the values in use.
        requested: This run's configuration with None, "auto" or "match" for defaults.
        defaults: The recipe's default configuration, for fields that the checkpoint lacks because
            it is older than they are.
        step: Completed steps.

    Returns:
        The settings that differ, all of them in :data:`MAY_CHANGE`.

    Raises:
        CheckpointError: If any other setting differs.
    """
    now = flat(new)
    known = {name: value for name, value in flat(old).items() if not is_removed(name, value)}
    before = {**flat(defaults or {}), **known}
    asked = flat(requested or new)
    changes = []
    for name in {**before, **now}:
        was, value, wanted = before.get(name), now.get(name), asked.get(name)
        is_limited = name in FOLLOW_DATA and value != wanted
        if was in (value, wanted) or is_limited:
            continue
        if name not in MAY_CHANGE:
            raise CheckpointError(
                f"the checkpoint after step {step} was written with another {option(name)} "
                f"({was}, now {value}); resume with the same settings"
            )
        changes.append({"after_step": step, "what": option(name), "from": was, "to": value})
    return changes


def changed_inputs(
    old: Mapping[str, str], new: Mapping[str, str], *, step: int, accept: bool
) -> list[Change]:
    """List the inputs of a run that have changed since its start.

    Args:
        old: Fingerprints in the checkpoint, by name.
        new: Fingerprints of this run.
        step: Completed steps.
        accept: Accept changed images and a changed teacher.

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
                f"the {name} changed after step {step}: the run began with {before}, found {now}; "
                f"restore it{_RESTORE.get(name, '')}, or start the run again in another "
                f"folder{or_accept}"
            )
        changes.append({"after_step": step, "what": name, "from": before, "to": now})
    return changes


def protocol_note(changes: list[Change]) -> str:
    """Describe the changes that affect the result, to append to a sentence about the training."""
    matters = {*map(option, LENGTH), *_MAY_BE_ACCEPTED}
    return "".join(
        f"; resumed after step {change['after_step']} with another {change['what']} "
        f"({change['from']}, now {change['to']})"
        for change in changes
        if change["what"] in matters
    )


def first_length(changes: Iterable[Change], total_steps: int) -> int:
    """Return the number of steps that a run was to have when it began.

    Args:
        changes: What changed each time that it was resumed.
        total_steps: Its present number of steps.
    """
    lengths = (change["from"] for change in changes if change["what"] == option("run.max_steps"))
    first = next(lengths, total_steps)
    return first if isinstance(first, int) else total_steps


def check_length(step: int, steps: int) -> None:
    """Check that the run does not end before the checkpoint.

    Raises:
        CheckpointError: If it ends earlier.
    """
    if step > steps:
        raise CheckpointError(
            f"the checkpoint has {step} steps, expected at most {steps}, the length of the run; "
            "increase --run.max-steps or --optim.epochs"
        )


def load_parts(checkpoint: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Load the state of every part from a checkpoint.

    Raises:
        CheckpointError: If a part is missing from the checkpoint, unless it is in
            :data:`MAY_BE_NEW`, or its state does not fit.
    """
    for name, part in parts.items():
        if name in MAY_BE_NEW and name not in checkpoint:
            continue
        try:
            part.load_state_dict(checkpoint[name])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the checkpoint after step {checkpoint['step']} does not fit this run's {name} "
                f"({type(error).__name__}: {reason}); start the run again in another folder"
            ) from error


def option(name: str) -> str:
    """Return ``run.max_steps`` as its command-line option."""
    return f"--{name.replace('_', '-')}"
