"""Read a backbone from a checkpoint of another library, with timm's names."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pcd_hub.errors import StudentError, TeacherError, WeightError
from pcd_hub.files.strict_json import printable
from pcd_hub.image_size import ImageSize
from pcd_hub.models.backbone_in_file import count_keys, find_backbone
from pcd_hub.models.entries import build_skeleton, entry_cfg, size_argument
from pcd_hub.models.tensor_files import check_tensors, load_tensor_file
from pcd_hub.weights.imported.namings import PREFERRED, in_timms_names, namings_of, warnings_of
from pcd_hub.weights.tensors import needed_shapes


class ReadCheckpoint(NamedTuple):
    """A backbone in a checkpoint."""

    state: dict[str, Tensor]
    """All tensors of the architecture, with timm's names."""
    facts: dict[str, Any]
    """What the record says about the file."""
    warnings: tuple[str, ...]
    """What may be wrong, and cannot be seen in the file."""


def read_checkpoint(
    file: Path,
    architecture: str,
    *,
    image_size: ImageSize,
    bgr: bool = False,
    prefix: str | None = None,
) -> ReadCheckpoint:
    """Read a backbone; every tensor of the architecture must be there.

    Counters of batch norms, which some libraries do not save, are 0 if they are missing.

    Args:
        file: A ``.safetensors`` or ``torch.save`` file.
        architecture: timm's name of the architecture.
        image_size: Size of the images, for architectures that depend on it.
        bgr: The network takes blue, green and red: reverse the channels of its first layer.
        prefix: Where the backbone is in the file, if it holds several.

    Raises:
        WeightError: If the file is missing, damaged or anything but tensors in plain containers, or
            its tensors are not exactly those of the architecture.
    """
    shown = printable(str(file))[:200]
    if not file.is_file():
        raise WeightError(
            f"no file {shown}; expected a checkpoint: .safetensors, or what torch.save writes"
        )
    what, arguments = f"{shown} for {architecture}", size_argument(architecture, image_size)
    needed = needed_shapes(architecture, arguments, what=what)
    try:
        loaded, content = load_tensor_file(file)
        naming = max(  # the first of equals, which is timm's
            namings_of(architecture), key=lambda one: count_keys(loaded, one.names(needed).values())
        )
        found = find_backbone(
            loaded,
            naming.names(needed).values(),
            what=what,
            naming=naming.libraries,
            prefix=prefix and f"{prefix.rstrip('.')}.",
            preferred=PREFERRED,
            remedy="choose one with --prefix",
        )
        check_tensors(found.state, file, size=len(content))
    except (TeacherError, StudentError) as error:  # the readers are those of teachers and students
        raise WeightError(str(error)) from error
    state = _complete(in_timms_names(found.state, naming, needed), architecture, arguments, what)
    if bgr:
        state = _with_reversed_channels(state, architecture)
    facts = {
        "file": printable(file.name)[:200],
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "layout": naming.libraries,
        "prefix": printable(found.prefix),
        "unused": found.unused,
        "channels": "blue, green, red; reversed on import" if bgr else "red, green, blue (assumed)",
    }
    return ReadCheckpoint(state, facts, warnings_of(naming, needed, bgr=bgr))


def _complete(
    state: Mapping[str, Tensor], architecture: str, arguments: Mapping[str, Any], what: str
) -> dict[str, Tensor]:
    """Check shapes and kinds of number; add the counters that are missing.

    Raises:
        WeightError: If a tensor has another shape, or integers in place of floats.
    """
    expected = build_skeleton(architecture, **arguments).state_dict()
    unlike = [
        f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}, expected "
        f"{tuple(expected[name].shape)}"
        for name, value in state.items()
        if value.shape != expected[name].shape
        or value.is_floating_point() != expected[name].is_floating_point()
    ]
    if unlike:
        raise WeightError(
            f"{what}: {len(unlike)} of its tensors differ (first {'; '.join(unlike[:2])}); is it "
            "another architecture, or another --image-size?"
        )
    counters = {
        name: value.new_zeros(value.shape, device="cpu")
        for name, value in expected.items()
        if name not in state
    }
    return {**counters, **state}


def _with_reversed_channels(state: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """Return the weights for images of red, green and blue instead of blue, green and red.

    Raises:
        WeightError: If timm does not say which layer takes the images.
    """
    first = entry_cfg(architecture).first_conv
    names = [f"{name}.weight" for name in (first if isinstance(first, tuple) else (first,))]
    if any(name not in state or state[name].shape[1:2] != (3,) for name in names):
        raise WeightError(f"--bgr: timm does not name the first layer of {architecture}")
    return {**state, **{name: state[name].flip(1) for name in names}}
