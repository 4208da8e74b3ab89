"""``--teacher.source auto``: the first reachable of a list of recommended teachers."""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import timm
from huggingface_hub import HfApi, constants, try_to_load_from_cache

from pcd_hub.errors import TeacherError, first_line
from pcd_hub.image_size import ImageSize, height_width
from pcd_hub.models.teacher_sources.catalogue import TEACHERS, RecommendedTeacher
from pcd_hub.models.timm_loading import TIMEOUT_SECONDS, probe_hub

log = logging.getLogger("pcd_hub")

AUTO = "auto"
"""Teacher source that :func:`choose_teacher` resolves."""

ON_GPU = (
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "convnext_small.fb_in22k",
    "convnext_tiny.fb_in22k",
    "resnet50.a1_in1k",
    "tf_efficientnet_lite0.in1k",
)
"""Candidates on a GPU, in order of preference; all have permissive licences."""
ON_CPU = (
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "convnext_tiny.fb_in22k",
    "tf_efficientnet_lite0.in1k",
    "resnet50.a1_in1k",
)
"""Candidates on a CPU: a step costs at most 2.2 times that of the student alone (computed)."""


class Choice(NamedTuple):
    """A chosen teacher."""

    source: str
    reason: str


def choose_teacher(*, image_size: ImageSize | None = None, device_type: str = "cpu") -> Choice:
    """Choose the first candidate that is in huggingface_hub's cache, else the first on the Hub.

    Candidates that make no sense at ``image_size`` come last. With ``HF_HUB_OFFLINE=1`` there is no
    request. The choice is logged.

    Args:
        image_size: Size of the teacher's images in pixels; None for its own.
        device_type: "cpu" for the list of cheap candidates, else the one for GPUs.

    Raises:
        TeacherError: If no candidate is reachable.
    """
    names = ON_CPU if device_type == "cpu" else ON_GPU
    known = {teacher.name: teacher for teacher in TEACHERS}
    candidates = _suitable_first([known[name] for name in names], image_size)
    choice = _cached(candidates) or _on_hub(candidates)
    log.info("--teacher.source %s: %s (%s)", AUTO, choice.source, choice.reason)
    return choice


def cached_choice(device_type: str) -> Choice | None:
    """Return what :func:`choose_teacher` takes without a request; None if nothing is cached."""
    names = ON_CPU if device_type == "cpu" else ON_GPU
    known = {teacher.name: teacher for teacher in TEACHERS}
    return _cached(_suitable_first([known[name] for name in names], None))


def _suitable_first(
    candidates: Sequence[RecommendedTeacher], image_size: ImageSize | None
) -> list[RecommendedTeacher]:
    """Drop what timm lacks, and sort those to the end for which the images are too small."""
    side = min(height_width(image_size)) if image_size else math.inf
    in_timm = [teacher for teacher in candidates if teacher.is_in_timm]
    return sorted(in_timm, key=lambda one: side < one.smallest_image_size)


def _cached(candidates: Sequence[RecommendedTeacher]) -> Choice | None:
    for teacher in candidates:
        files = ("model.safetensors", "pytorch_model.bin")
        if any(isinstance(try_to_load_from_cache(_repo(teacher), file), str) for file in files):
            return Choice(teacher.source, "the first of the list that is in the cache")
    return None


def _on_hub(candidates: Sequence[RecommendedTeacher]) -> Choice:
    """Return the first candidate on the Hub.

    Raises:
        TeacherError: If there is none, or no connection.
    """
    if constants.HF_HUB_OFFLINE:
        raise _none_reachable(candidates, "HF_HUB_OFFLINE is set")
    if unreachable := probe_hub():
        raise _none_reachable(candidates, unreachable)
    reasons = []
    for teacher in candidates:
        try:
            HfApi().model_info(_repo(teacher), timeout=TIMEOUT_SECONDS)
        except Exception as error:  # depends on the HTTP library
            reasons.append(f"{teacher.name}: {first_line(error)[:80]}")
            continue
        return Choice(teacher.source, "the first of the list that is on the Hub; none is cached")
    raise _none_reachable(candidates, "the Hub refuses them: " + "; ".join(reasons)[:300])


def _none_reachable(candidates: Sequence[RecommendedTeacher], reason: str) -> TeacherError:
    names = ", ".join(teacher.name for teacher in candidates)
    return TeacherError(
        f"--teacher.source {AUTO}: none of {names} is in the cache {constants.HF_HUB_CACHE}, and "
        f"{reason}; copy a teacher's folder to this machine and use --teacher.source "
        "local-dir:DIR, or a checkpoint with timm:ARCH:FILE"
    )


def _repo(teacher: RecommendedTeacher) -> str:
    cfg = timm.get_pretrained_cfg(teacher.name)
    assert cfg is not None, "it is in timm"
    return cfg.hf_hub_id or f"timm/{teacher.name}"
