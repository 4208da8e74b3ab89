"""Write state dicts for torchvision, detectron2 and mmdet."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
import torchvision

from pcd_hub.errors import WeightError, first_line
from pcd_hub.files.strict_json import printable
from pcd_hub.models.tensor_files import writing_tensors
from pcd_hub.weights.formats.architectures import DETECTRON2, MMDET, TORCHVISION, Held
from pcd_hub.weights.formats.key_maps import renamed
from pcd_hub.weights.formats.readme import (
    Usage,
    band_names,
    in_chans,
    normalisation,
    note_of_bands,
)
from pcd_hub.weights.load import ReadWeight


def held(weight: ReadWeight, table: Mapping[str, Held], *, to: str) -> Held:
    """Return the weight's architecture in a framework.

    Raises:
        WeightError: If the framework does not have it.
    """
    architecture = weight.config["architecture"]
    if architecture not in table:
        raise WeightError(
            f"--to {to}: {to} has no {printable(architecture)}, it has {', '.join(table)}; "
            "use --to timm, onnx or torchscript, which take any architecture"
        )
    return table[architecture]


def check_channels(weight: ReadWeight, *, to: str, rgb: bool = False) -> None:
    """Raise a WeightError if the weight does not take images of 3 channels, or not RGB ones."""
    if (bands := in_chans(weight)) != 3:
        raise WeightError(
            f"--to {to}: {to}'s {weight.config['architecture']} takes images of 3 channels, "
            f"this weight of {bands}; use --to timm, torchscript or onnx"
        )
    if rgb and (names := band_names(weight)):
        raise WeightError(
            f"--to {to}: {to} reads images as RGB, this weight takes {', '.join(names)}; use --to "
            "timm, torchscript or onnx"
        )


def write_torchvision(weight: ReadWeight, folder: Path, place: PurePath) -> Usage:
    """Write a state dict that torchvision's model loads strictly, without its classifier."""
    found = held(weight, TORCHVISION, to="torchvision")
    check_channels(weight, to="torchvision")
    state, file = renamed(weight.tensors, found.keys), f"{weight.record.name}.pth"
    name, head = found.options["name"], found.options["head"]
    network = torchvision.models.get_model(name)
    absent = {key for key in network.state_dict() if key.startswith(head.partition("[")[0] + ".")}
    try:
        result = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightError(f"--to torchvision: {first_line(error)}") from error
    if unlike := [*result.unexpected_keys, *(set(result.missing_keys) - absent)]:
        raise WeightError(
            f"--to torchvision: {len(unlike)} tensors differ from {name}'s, first {unlike[0]}"
        )
    _save(state, folder / file)
    detection = (
        "For detection: `backbone = torchvision.models.detection.backbone_utils."
        f'resnet_fpn_backbone(backbone_name="{name}", weights=None)`, then '
        "`backbone.body.load_state_dict(state)`."
    )
    return Usage(
        file=file,
        code=f"""import torch, torchvision
model = torchvision.models.{name}()
model.{head} = torch.nn.Identity()  # or a new classifier, and strict=False below
state = torch.load("{place / file}", weights_only=True)
model.load_state_dict(state)""",
        notes=(detection,) if head == "fc" else (),
    )


def write_detectron2(weight: ReadWeight, folder: Path, place: PurePath) -> Usage:
    """Write a checkpoint for detectron2's ``MODEL.WEIGHTS``.

    detectron2 matches its names by their ends (``matching_heuristics``), so that one file serves
    FPN, C4 and others.
    """
    found, file = held(weight, DETECTRON2, to="detectron2"), f"{weight.record.name}.pth"
    checkpoint = {
        "model": renamed(weight.tensors, found.keys),
        "__author__": "pcd_hub",
        "matching_heuristics": True,
    }
    _save(checkpoint, folder / file)
    is_rgb = not band_names(weight)
    value_range = 255 if is_rgb else 1
    mean, std = normalisation(weight, value_range)
    options = ", ".join(f"{key}: {value}" for key, value in found.options.items())
    images = (
        "detectron2 reads images as BGR by default, from 0 to 255: `INPUT.FORMAT` and the two "
        "`PIXEL_` options are necessary."
    )
    return Usage(
        file=file,
        code=f"""_BASE_: "Base-RCNN-FPN.yaml"
MODEL: {{WEIGHTS: "{place / file}", BACKBONE: {{FREEZE_AT: 0}},
  RESNETS: {{{options}, NORM: "BN"}},
  PIXEL_MEAN: {mean}, PIXEL_STD: {std}}}"""
        + '\nINPUT: {FORMAT: "RGB"}' * is_rgb,
        language="yaml",
        value_range=value_range,
        notes=(
            images if is_rgb else note_of_bands(weight, "detectron2"),
            (
                "`Base-RCNN-FPN.yaml` is in detectron2's `configs`; without an FPN, the last stage "
                "of a ResNet-18 or ResNet-34 would stay random. `FREEZE_AT: 0` and `NORM` train "
                "everything; the defaults freeze the first stage and the batch norms."
            ),
            (
                "The names follow detectron2's published ResNet; not tried with detectron2 itself, "
                "which is on no package registry."
            ),
        ),
    )


def write_mmdet(weight: ReadWeight, folder: Path, place: PurePath) -> Usage:
    """Write a state dict for the ``init_cfg`` of an mmdet backbone."""
    found, file = held(weight, MMDET, to="mmdet"), f"{weight.record.name}.pth"
    _save({"state_dict": renamed(weight.tensors, found.keys)}, folder / file)
    is_rgb = not band_names(weight)
    value_range = 255 if is_rgb else 1
    mean, std = normalisation(weight, value_range)
    options = {"in_channels": in_chans(weight)} if in_chans(weight) != 3 else {}
    options |= {key: value for key, value in found.options.items() if key != "name"}
    arguments = ", ".join(f"{key}={value}" for key, value in options.items())
    preprocessor = f"""
normalisation = dict(mean={mean}, std={std}, bgr_to_rgb=True)
data_preprocessor = dict(type="DetDataPreprocessor", **normalisation, pad_size_divisor=32)"""
    images = (
        "mmdet reads images as BGR, from 0 to 255: `bgr_to_rgb=True` is necessary (in mmdet 2, "
        "`to_rgb=True` of `Normalize`)."
    )
    return Usage(
        file=file,
        code=f"""init_cfg = dict(type="Pretrained", checkpoint="{place / file}")
backbone = dict(type="{found.options["name"]}", {arguments}, style="pytorch", init_cfg=init_cfg)
"""
        + preprocessor * is_rgb,
        value_range=value_range,
        notes=(images if is_rgb else note_of_bands(weight, "mmdet"),),
    )


def _save(value: Any, file: Path) -> None:
    with writing_tensors(file):
        torch.save(value, file)
