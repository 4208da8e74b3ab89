"""What to try after a run, by simple rules."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pcd_hub.data.survey.result import MANY_COPIES_SHARE

MANY_PASSES = 300
"""Passes over the images from which more images are worth a try; not measured."""
LONG_WAIT = 0.2
"""Share of the time spent waiting for images from which more loader processes help."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Facts about a finished run that the rules use."""

    run: str
    """The run's folder, quoted for a shell."""
    outcome: Literal["better", "within noise", "worse", "not measured"]
    """The student compared with its start."""
    still_improving: bool
    """Whether the last held-out score is the best."""
    stopped_early: bool
    num_images: int | None
    passes: float
    """Passes over the images; 0 for a stream."""
    share_of_copies: float
    data_wait: float
    on_scenes: bool
    """Trained on generated scenes."""
    teacher: str
    starts_from_weights: bool
    fault: str = ""
    """Remedy of the last early verdict, if it is bad."""
    reads_rgb: bool = True
    """The student takes RGB images, as evaluations do."""


def next_steps(facts: Situation) -> list[str]:
    """Return what to try next, as Markdown, the most useful first."""
    fault = [facts.fault] if facts.fault else []
    if facts.on_scenes:
        return [
            *fault,
            "This run used generated scenes: `pcd-hub distill DIR` uses your own images.",
        ]
    return [*(fault or _by_outcome(facts)), *_by_images(facts), *_by_models(facts)]


def _by_outcome(facts: Situation) -> Iterator[str]:
    longer = f"`pcd-hub distill --resume {facts.run} --hours H` continues this run"
    if facts.outcome == "worse" and facts.starts_from_weights:
        yield (
            "The student is worse than the weights it started from: use a smaller "
            "`--optim.lr-per-256`, or another teacher."
        )
    elif facts.outcome == "worse":
        yield (
            "The student is worse than its start: use a smaller `--optim.lr-per-256`, or another "
            "teacher."
        )
    elif facts.outcome == "within noise":
        yield f"The student has not left its start: train for longer ({longer})."
        yield (
            "Look at `pictures/views.png`: if the crops no longer show what matters, raise "
            "`--data.min-crop-area` or use `--data.augment light`."
        )
    elif facts.stopped_early:
        yield (
            "The score had stopped improving: more images or a larger teacher help, more time "
            "does not."
        )
    elif facts.still_improving:
        yield f"The score was still improving at the end: {longer}."


def _by_images(facts: Situation) -> Iterator[str]:
    if facts.passes > MANY_PASSES:
        yield (
            f"Each of the {facts.num_images} images was seen {facts.passes:.0f} times: add "
            "unlabelled images of the same kind (`pcd-hub distill DIR OTHER_DIR`)."
        )
    if facts.share_of_copies > MANY_COPIES_SHARE:
        yield (
            f"{100 * facts.share_of_copies:.0f} % of the images are copies, which are negatives of "
            "each other: remove them."
        )
    if facts.data_wait > LONG_WAIT:
        yield (
            f"{100 * facts.data_wait:.0f} % of the time was spent waiting for images: raise "
            "`--data.num-workers`, or store smaller images."
        )


def _by_models(facts: Situation) -> Iterator[str]:
    if facts.teacher == "quickstart":
        yield (
            "The quickstart teacher has seen generated scenes only: `pcd-hub teachers` lists "
            "better ones for `--teacher`."
        )
    if not facts.starts_from_weights:
        yield (
            "`--student.weights pretrained` starts from timm's weights instead of random ones, "
            "`shipped` from pcd_hub's, where it has one."
        )
    if facts.reads_rgb:
        yield f"Measure the features on your task: `pcd-hub probe LABELLED {facts.run}`."
