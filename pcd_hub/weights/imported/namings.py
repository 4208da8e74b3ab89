"""How other libraries name a backbone's tensors, and which of several copies is the trained one."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from pcd_hub.weights.formats.architectures import DETECTRON2, MMDET, TORCHVISION, TRANSFORMERS
from pcd_hub.weights.formats.key_maps import SEQUENTIAL_RESNET, TIMM, KeyMap, new_names

PREFERRED = (
    r"(^|\.)encoder_q\.",  # MoCo v1 and v2; encoder_k is its average, the source of the keys
    r"(^|\.)base_encoder\.",  # MoCo v3; besides momentum_encoder
    r"(^|\.)online_(encoder|network|net)\.",  # BYOL; besides target_encoder
    r"(^|\.)teacher(_backbone)?\.",  # DINO and iBOT evaluate the teacher, the student's average
    r"(^|\.)backbone\.",  # solo-learn; besides momentum_backbone
)
"""Prefixes of the copy that the method's authors evaluate, in files that hold several."""

_TABLES = {
    "torchvision": TORCHVISION,
    "detectron2": DETECTRON2,
    "mmdet": MMDET,
    "transformers": TRANSFORMERS,
}


class Naming(NamedTuple):
    """The names that one or several libraries give to the tensors of an architecture."""

    libraries: str
    keys: KeyMap

    def names(self, timm_names: Iterable[str]) -> dict[str, str]:
        """Return the libraries' names by timm's."""
        return new_names(timm_names, self.keys)


def namings_of(architecture: str) -> list[Naming]:
    """Return the known namings of an architecture, timm's first."""
    found = {TIMM: ["timm"]}
    for library, table in _TABLES.items():
        if architecture in table:
            found.setdefault(table[architecture].keys, []).append(library)
    if TIMM in found and "torchvision" in found[TIMM]:
        found[SEQUENTIAL_RESNET] = ["nn.Sequential"]
    return [Naming(", ".join(libraries), keys) for keys, libraries in found.items()]


def warnings_of(naming: Naming, timm_names: Iterable[str], *, bgr: bool) -> tuple[str, ...]:
    """Return what the names cannot tell, and what differs by default in the library."""
    if naming.libraries != "detectron2":
        return ()
    order = "detectron2 reads images as BGR by default (INPUT.FORMAT); expected RGB, or --bgr"
    stride = (
        "detectron2's bottlenecks have their stride in the first convolution by default "
        "(STRIDE_IN_1X1: True); expected False, as timm has it: otherwise the features differ"
    )
    has_bottlenecks = any(name.endswith(".conv3.weight") for name in timm_names)
    return (*(() if bgr else (order,)), *((stride,) if has_bottlenecks else ()))


def in_timms_names(
    state: Mapping[str, Tensor], naming: Naming, timm_names: Iterable[str]
) -> dict[str, Tensor]:
    """Return the tensors with timm's names and shapes; the inverse of ``key_maps.renamed``."""
    renamed = {}
    for name, theirs in naming.names(timm_names).items():
        if theirs in state:
            value = state[theirs]
            is_per_channel = naming.keys.is_per_channel(theirs) and value.shape[1:] == (1, 1)
            renamed[name] = value.flatten() if is_per_channel else value
    return renamed
