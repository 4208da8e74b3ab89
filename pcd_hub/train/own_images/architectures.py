"""What an architecture's name and network tell about its image sizes and its memory."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcd_hub.errors import ConfigError, PCDHubError
from pcd_hub.models.entries import build_skeleton, check_architecture
from pcd_hub.models.layouts import FAMILIES, LAYOUTS, layout_of
from pcd_hub.models.teacher_folder import TEACHER_FACTS, read_facts
from pcd_hub.models.teacher_sources.memory import architecture_of
from pcd_hub.models.teachers import Teacher
from pcd_hub.models.timm_loading import cache_alone_if_unreachable, read_config
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.own_images.rule import IMAGE_SIZE
from pcd_hub.train.own_images.situation import SIZE_STEP


def most_bytes_per_pixel(config: DistillConfig) -> float | None:
    """Return the largest :func:`bytes_per_pixel` of the students, which are trained in turn."""
    found = [bytes_per_pixel(architecture) for architecture in config.student.architectures]
    return max((number for number in found if number is not None), default=None)


def common_step(config: DistillConfig, *, kind: str, short_side: int, given: frozenset[str]) -> int:
    """Return the step between the image sizes that all students take.

    Raises:
        ConfigError: If the size is to be derived, and the first that they all take is too large.
    """
    steps = {name: patch_size(name) for name in config.student.architectures}
    common = math.lcm(*steps.values())
    most = IMAGE_SIZE["cpu" if kind == "cpu" else "gpu"]
    most = min(most, max(SIZE_STEP, short_side or most))
    if config.derive and "data.image_size" not in given and len(steps) > 1 and common > most:
        each = ", ".join(f"{name} {step}" for name, step in steps.items())
        raise ConfigError(
            f"--student.arch {config.student.arch}: they take image sizes in steps of {each} px, "
            f"together {common}, expected at most {most}; set --data.image-size {common}, or train "
            "them separately"
        )
    return common


def patch_size(architecture: str) -> int:
    """Return the step between the image sizes that an architecture takes, by its timm name.

    Patches that divide the usual step are those of the first of several stages.
    """
    found = re.search(r"patch(\d+)", architecture)
    step = int(found[1]) if found else SIZE_STEP
    return step if SIZE_STEP % step or step == 16 else SIZE_STEP


def has_finer_map(architecture: str) -> bool:
    """Return whether the map before an architecture's last one is finer; False if unknown."""
    try:
        check_architecture(architecture)
        model = build_skeleton(architecture)
    except PCDHubError:  # building the student reports it
        return False
    stages: Any = getattr(model, "feature_info", None) or []
    if len(stages) < 2 or not hasattr(model, "forward_intermediates"):
        return False
    return stages[-2].get("reduction", 0) < stages[-1].get("reduction", 0)


def teacher_patch(config: DistillConfig, teacher: Teacher | None) -> int:
    """Return the step between the teacher's image sizes, if the settings are derived.

    Args:
        config: The requested configuration.
        teacher: A teacher from Python, which states its patches as timm's or transformers' models
            do; None for that of the configuration.
    """
    if not config.derive:
        return SIZE_STEP
    if teacher is None:
        return patch_size(_architecture(config.teacher.source))
    model: Any = teacher.grid.model
    stated = (
        getattr(model, "patch_size", None),
        getattr(getattr(model, "patch_embed", None), "patch_size", None),
        getattr(getattr(model, "config", None), "patch_size", None),
    )
    sizes = (size[0] if isinstance(size, tuple | list) else size for size in stated if size)
    return next((size for size in sizes if isinstance(size, int)), SIZE_STEP)


def teacher_has_head(source: str, teacher: Teacher | None = None) -> bool:
    """Return whether a teacher has a trained projection head, without reading its weights.

    Args:
        source: The teacher's source; False if it does not tell.
        teacher: A teacher from Python; None for that of the source.
    """
    if teacher is not None:
        return not isinstance(teacher.head, nn.Identity)
    scheme, _, rest = source.partition(":")
    if scheme in FAMILIES or scheme in LAYOUTS:
        return layout_of(scheme, architecture="resnet50").head is not None  # the same for each
    try:
        folder = Path(rest).expanduser()
        facts = read_facts(folder / TEACHER_FACTS) if scheme == "local-dir" else {}
    except Exception:  # loading the teacher reports it
        return False
    return source == "quickstart" or facts.get("head", "none") != "none"


def _architecture(teacher: str) -> str:
    """Return the architecture's name if the teacher's source tells it."""
    if known := architecture_of(teacher):
        return known
    try:
        with cache_alone_if_unreachable(teacher):
            config = read_config(teacher)
    except Exception:  # loading the teacher reports it
        return teacher
    return teacher if config is None else config.architecture


def bytes_per_pixel(architecture: str) -> float | None:
    """Measure the memory that a backward pass needs per pixel of an image, in fp32.

    The network runs without data (on PyTorch's meta device); None if it cannot.
    """
    size = 224
    seen: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            seen[id(tensor)] = tensor.nbytes
        return tensor

    try:
        check_architecture(architecture)
        model = build_skeleton(architecture)
        images = torch.zeros(2, 3, size, size, device=next(model.parameters()).device)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(images)
    except (PCDHubError, RuntimeError, NotImplementedError, ValueError, AssertionError):
        return None
    return sum(seen.values()) / (2 * size**2)
