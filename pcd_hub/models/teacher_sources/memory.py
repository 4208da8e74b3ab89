"""Whether a teacher fits into memory, estimated before its weights are read."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pcd_hub.errors import TeacherError
from pcd_hub.host_memory import available_host_memory
from pcd_hub.image_size import ImageSize, format_size, height_width
from pcd_hub.models.entries import build_arguments
from pcd_hub.models.layouts import FAMILIES, LAYOUTS
from pcd_hub.models.teacher_folder import TEACHER_FACTS, read_facts
from pcd_hub.models.teacher_sources.transformers_folder import (
    is_transformers_folder,
    transformers_architecture,
)
from pcd_hub.models.timm_loading import read_config

_GIB = 2**30
_PROBED_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory of a frozen network in bytes, at 4 bytes a value."""

    weights: int
    activations: int
    """The largest inputs and outputs of one operation: a lower bound."""


def check_teacher_memory(
    source: str, *, image_size: ImageSize, batch_size: int, device: torch.device
) -> str:
    """Refuse a teacher whose weights alone do not fit; return a warning if a batch may not, or "".

    The estimate is made without the weights, on the meta device. Nothing is checked if the
    architecture is not known before loading, or the free memory is unknown.

    Args:
        source: The teacher's source.
        image_size: Size of its images in pixels.
        batch_size: Images in one forward pass.
        device: Where it will run; it is loaded on the host.

    Raises:
        TeacherError: If its weights need more than the available memory.
    """
    architecture = architecture_of(source)
    if architecture is None or (need := estimate(architecture, image_size, batch_size)) is None:
        return ""
    for place, available in _available(device):
        if need.weights > available:
            raise TeacherError(
                f"{source} needs {need.weights / _GIB:.1f} GiB for its weights, but "
                f"{available / _GIB:.1f} GiB of {place} memory are available; use a smaller "
                "teacher (pcd-hub teachers) or free memory"
            )
        if place == _name(device) and need.weights + need.activations > available:
            return (
                f"the teacher needs about {(need.weights + need.activations) / _GIB:.1f} GiB for a "
                f"batch of {batch_size} images of {format_size(image_size)} px, but "
                f"{available / _GIB:.1f} GiB of {place} memory are available; reduce "
                "--optim.global-batch-size (with --optim.accumulation-steps) or "
                "--teacher.image-size, or use a smaller teacher"
            )
    return ""


def architecture_of(source: str) -> str | None:
    """Return a source's architecture in timm, if it is known without loading or a request."""
    scheme, _, rest = source.partition(":")
    if scheme == "timm" or scheme in FAMILIES:
        return rest.partition(":")[0].partition(".")[0]
    if scheme in LAYOUTS:
        return LAYOUTS[scheme].architecture
    if scheme == "local-dir":
        with suppress(Exception):  # loading it raises the error
            return _architecture_of_folder(Path(rest).expanduser())
    return None


def _architecture_of_folder(folder: Path) -> str | None:
    if (folder / TEACHER_FACTS).exists():
        return read_facts(folder / TEACHER_FACTS)["architecture"]
    if is_transformers_folder(folder):
        return transformers_architecture(folder)
    config = read_config(f"local-dir:{folder}")
    return config.architecture if config else None


def estimate(architecture: str, image_size: ImageSize, batch_size: int) -> MemoryEstimate | None:
    """Estimate a model's memory on the meta device; None if it cannot be built there."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=()):
            arguments = build_arguments(architecture, image_size)
            model: Any = timm.create_model(architecture, num_classes=0, **arguments)
    except Exception:  # loading it raises the error
        return None
    weights = sum(tensor.numel() * 4 for tensor in (*model.parameters(), *model.buffers()))
    return MemoryEstimate(
        weights=weights, activations=_activations(model.eval(), image_size, batch_size)
    )


def _activations(model: nn.Module, image_size: ImageSize, batch_size: int) -> int:
    forward: Any = getattr(model, "forward_features", model)
    with torch.device("meta"), torch.no_grad(), _LargestOperation() as largest:
        try:
            forward(torch.zeros(_PROBED_BATCH, 3, *height_width(image_size)))
        except Exception:  # not every operation exists on the meta device
            return 0
    return largest.num_values * 4 * batch_size // _PROBED_BATCH


class _LargestOperation(TorchDispatchMode):
    """Find the operation with the most values in its inputs and outputs, parameters excluded."""

    def __init__(self) -> None:
        super().__init__()
        self.num_values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, result)) if isinstance(one, Tensor)]
        sizes = {id(one): one.numel() for one in tensors if not isinstance(one, nn.Parameter)}
        self.num_values = max(self.num_values, sum(sizes.values()))
        return result


def _available(device: torch.device) -> list[tuple[str, int]]:
    """Return name and available bytes of the host's memory and of the device's."""
    found = [("host", available_host_memory())]
    if device.type == "cuda":
        found.append((_name(device), torch.cuda.mem_get_info(device)[0]))
    return [(name, size) for name, size in found if size is not None]


def _name(device: torch.device) -> str:
    return "host" if device.type == "cpu" else "GPU"
