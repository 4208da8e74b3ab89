"""Early verdict on a distillation, in words: pure rules on what was measured so far.

Faults of the inputs are found before the first step: a wrong normalisation of the teacher by its
first batch norm (``models/teacher_sources/normalisation_fit.py``), copies among the images by their
survey. "Too early" is no alarm: 20 steps of a MobileNetV4 show nothing yet.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

Kind = Literal[
    "learning", "wrong teacher", "flat", "collapsing", "worse than its start", "too early"
]
Line = Mapping[str, float]
"""``step`` and the metrics of one measurement, as in ``metrics.jsonl``."""

EARLY_SHARES = (0.05, 0.1)
"""Shares of the run after which the verdict is logged, whatever it is."""
LATE_SHARE = 0.3
"""Share after which a run without any sign of learning is called flat; the average over the window
must show none, and the last measurements none either. A ResNet-18 on photographs first found the
teacher's pixels at step 40 of 200 and raised the average only at step 90."""
WORSE_SHARE = 0.5
"""Share before which no run is called worse than its start: good weights agree less with the
teacher while the head is new and the learning rate high. On 301 photographs, the shipped ResNet-18
was worse than its start at step 30 of 222, and better at step 60 and at the end."""
SHORT_STEPS = 60
"""Length below which a run that is worse than its start is called too short. In the run above, the
student had caught up after 60 steps; after 12 steps on 80 photographs, one was below its start
(CKA with the teacher 86.2 %, of the start 90.1 %)."""
LATE_STEPS = 300
"""Steps before which no run is called flat, however short it is. Seven of 19 good runs had shown
nothing after 100 steps of 16 images. Neither is a run without retrieval (``similarity_kl``), whose
CKA had not risen after 300."""
MIN_LINES = 3
"""Measurements in a row that must agree."""
WINDOW = 16
"""Measurements that are averaged."""

MAX_COSINE = 0.99
"""Mean cosine of a student's pixels, or of the keys; 45 good runs had at most 0.40, and 0.33."""
MIN_RANK = 10.0
"""Effective rank of 256 pixels of a collapsed student. It is not compared with the teacher's: in
good runs it fell from 197 to 40, a fifth of the teacher's, and rose again."""
MIN_RANK_RATIO = 0.5
"""A student's rank below ``MIN_RANK`` counts only below this share of the teacher's."""
BLIND_COSINE, BLIND_VIEWS = 0.9, 0.4
"""Cosine of the teacher's vectors of different images, and share of the views that it matches among
16 images. EfficientNet-Lite0: 0.25 and 0.9 when trained, 0.97 and 0.2 with random weights."""
VANISHED_GRADIENT = 0.01
"""Gradient norm as a share of the first: 0.003 after 8 steps with a learning rate 100 times too
high, which inflates the weights before a normalisation; 0.12 after 25 steps of a good run, 0.04
with a teacher that is easy to copy."""
MIN_TARGET_COSINE = 0.99
"""Mean cosine of the loss's targets with the teacher's feature maps of the same images. It is 1 but
for rounding; 0.9998 with cached targets."""
LEARNT_TOP1 = 5.0
"""Retrieval in times of a guess that shows learning. In the first steps, while the queue holds
random keys, untrained students had 3.0; on generated scenes it was 9.6 after 20 steps."""
LEARNT_CKA = 0.1
"""Rise of CKA since the first measurements that shows learning: on held-out images, a ResNet-18
rose from 0.08 to 0.21 in the first 5 % of 908 steps."""


class Verdict(NamedTuple):
    """A verdict, with its reason in words."""

    kind: Kind
    words: str
    """What was measured, and what was expected."""
    cause: str = ""
    """The likely cause; empty if the rules know none."""
    remedy: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether the run should be looked at."""
        return self.kind not in ("learning", "too early")

    def __str__(self) -> str:
        cause = f"; likely cause: {self.cause}" if self.cause else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.kind}: {self.words}{cause}{remedy}"


def judge(
    lines: Sequence[Line],
    *,
    total_steps: int,
    held_out: str = "",
    teacher_faults: Sequence[str] = (),
) -> Verdict:
    """Judge a run by its measurements; the first rule that holds decides.

    Args:
        lines: All measurements so far, oldest first.
        total_steps: Steps of the whole run.
        held_out: Outcome of comparing the student with its start on held-out images, if any.
        teacher_faults: What makes the teacher's feature maps wrong, found before the first step.
    """
    for verdict in _faults(lines, total_steps):
        return verdict
    for fault in teacher_faults:
        return Verdict("wrong teacher", fault)
    done = lines[-1]["step"] + 1 if lines else 0
    if held_out == "worse" and done >= WORSE_SHARE * total_steps:
        short = total_steps < SHORT_STEPS
        return Verdict(
            "worse than its start",
            "the student agrees with the teacher worse than before training, on held-out images",
            f"{total_steps} steps are too few" if short else "the learning rate is too high",
            "train longer (--hours, --run.max-steps)" if short else "lower --optim.lr-per-256",
        )
    if signs := list(_signs_of_learning(lines)):
        return Verdict("learning", ", ".join(signs))
    late = done >= max(LATE_SHARE * total_steps, LATE_STEPS)
    rising = any(_signs_of_learning(lines[-MIN_LINES:]))
    is_known = all(_mean(lines, name) is not None for name in ("pixel_cka", "pixel_top1"))
    if late and not rising and len(lines) >= WINDOW and is_known:
        return Verdict(
            "flat",
            f"no sign of learning after {done:.0f} of {total_steps} steps: neither the retrieval "
            "of the teacher's pixels nor CKA with the teacher has risen",
            "the learning rate, the teacher or the augmentation",
            "look at pictures/views.png, and try another --optim.lr-per-256",
        )
    return Verdict("too early", "neither a fault nor a sign of learning yet")


def _faults(lines: Sequence[Line], total_steps: int) -> Iterator[Verdict]:
    yield from _wrong_targets(lines)
    yield from _dead_queue(lines)
    yield from _blind_teacher(lines)
    yield from _collapse(lines, total_steps)
    yield from _vanished_gradient(lines, total_steps)


def _dead_queue(lines: Sequence[Line]) -> Iterator[Verdict]:
    if _all_last(lines, lambda line: line.get("new_keys") == 0):
        yield Verdict(
            "flat",
            f"the key queue received no new keys between {MIN_LINES} measurements",
            "its keys are not updated, so the negatives do not come from the images",
            "please report this bug",
        )


def _blind_teacher(lines: Sequence[Line]) -> Iterator[Verdict]:
    remedy = "check --teacher.source, --teacher.mean, --teacher.std and --data.source"
    if _all_last(lines, lambda line: line.get("key_cosine", 0) > MAX_COSINE):
        yield Verdict(
            "flat",
            f"the key queue is degenerate: its keys have a mean cosine of "
            f"{lines[-1]['key_cosine']:.4f} (expected at most {MAX_COSINE})",
            "the teacher maps all images to the same vector: random weights, a wrong "
            "normalisation, or images without content",
            remedy,
        )
    views, cosine = _mean(lines, "teacher_views"), _mean(lines, "teacher_cosine")
    if len(lines) < MIN_LINES or views is None or cosine is None:
        return
    if views < BLIND_VIEWS and cosine > BLIND_COSINE:
        yield Verdict(
            "flat",
            f"the teacher matches the two views of {views:.0%} of the images (expected at least "
            f"{BLIND_VIEWS:.0%}), and its vectors of different images have a mean cosine of "
            f"{cosine:.2f} (expected at most {BLIND_COSINE})",
            "the teacher has random weights or a wrong normalisation",
            remedy,
        )


def _collapse(lines: Sequence[Line], total_steps: int) -> Iterator[Verdict]:
    late = bool(lines) and lines[-1]["step"] + 1 >= EARLY_SHARES[0] * total_steps
    was_healthy = any("pixel_rank" in line and not _is_collapsed(line) for line in lines)
    if (late or was_healthy) and _all_last(lines, _is_collapsed):
        last = lines[-1]
        yield Verdict(
            "collapsing",
            f"the student's feature vectors have a mean cosine of {last['pixel_cosine']:.4f} "
            f"(expected at most {MAX_COSINE}) and an effective rank of {last['pixel_rank']:.1f} "
            f"(expected at least {MIN_RANK:.0f})",
            "the learning rate is too high",
            "stop the run and lower --optim.lr-per-256",
        )


def _is_collapsed(line: Line) -> bool:
    if "pixel_rank" not in line:
        return False
    low = line["pixel_rank"] < min(MIN_RANK, MIN_RANK_RATIO * line.get("teacher_rank", math.inf))
    return low or line["pixel_cosine"] > MAX_COSINE


def _vanished_gradient(lines: Sequence[Line], total_steps: int) -> Iterator[Verdict]:
    """Only early in the run: later, gradients are small where all is learnt."""
    early = lines and lines[-1]["step"] < 2 * EARLY_SHARES[-1] * total_steps
    first = max((line.get("gradient_norm", 0.0) for line in lines[:MIN_LINES]), default=0.0)
    least = VANISHED_GRADIENT * first
    gone = _all_last(lines, lambda line: line.get("gradient_norm", math.inf) < least)
    if early and gone and not list(_signs_of_learning(lines)):
        yield Verdict(
            "flat",
            f"the gradient has fallen from {first:.2g} to {lines[-1]['gradient_norm']:.2g} "
            f"(expected at least {least:.2g}), although nothing is learnt yet",
            "the learning rate is far too high and has inflated the weights",
            "stop the run and lower --optim.lr-per-256",
        )


def _wrong_targets(lines: Sequence[Line]) -> Iterator[Verdict]:
    cosine = next((line["target_cosine"] for line in lines if "target_cosine" in line), 1.0)
    if cosine < MIN_TARGET_COSINE:
        yield Verdict(
            "flat",
            f"the targets are not the teacher's feature maps of the same images: mean cosine "
            f"{cosine:.2f} (expected at least {MIN_TARGET_COSINE})",
            "views and targets are paired wrongly, or a teacher's cache does not belong to these "
            "images",
            "stop the run, and remove the cache (pcd-hub cache) or use --teacher.cache off; "
            "without a cache, please report this bug",
        )


def _signs_of_learning(lines: Sequence[Line]) -> Iterator[str]:
    if len(lines) < MIN_LINES:
        return
    top1, chance = _mean(lines, "pixel_top1"), _mean(lines, "pixel_chance")
    if top1 is not None and chance and top1 > LEARNT_TOP1 * chance:
        yield f"the teacher's pixel is found for {top1:.1%} of the pixels, by a guess {chance:.1%}"
    start, now = _mean(lines[: WINDOW // 2], "pixel_cka"), _mean(lines, "pixel_cka")
    if start is not None and now is not None and len(lines) >= WINDOW and now - start > LEARNT_CKA:
        yield f"CKA with the teacher rose from {start:.2f} to {now:.2f}"


def _all_last(lines: Sequence[Line], holds: Callable[[Line], bool]) -> bool:
    last = lines[-MIN_LINES:]
    return len(last) == MIN_LINES and all(map(holds, last))


def _mean(lines: Sequence[Line], name: str) -> float | None:
    """Return the mean over the last measurements, fewer at the start of a run."""
    recent = lines[-max(MIN_LINES, min(WINDOW, len(lines) // 2)) :]
    values = [line[name] for line in recent if name in line]
    return statistics.fmean(values) if values else None
